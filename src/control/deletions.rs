//! What the plugin noted while no daemon ran, and the mark by which it knows that pods are cut off.

use std::fs;
use std::io;

use cni::journal::Journal;
use cni::plugin::PODS_MARKER;
use ipam::{Attachment, PortKind};

use super::{Control, Topic};
use crate::events::Code;

impl Control {
    /// Carries out the deletions that were noted. What does not work is a problem, and is tried again.
    pub(super) fn take_up_deletions(&mut self) {
        let journal = Journal::beside(&self.config.paths.socket());
        let (deletions, faults) = match journal.read() {
            Ok(read) => read,
            Err(error) => return self.raise(Topic::Deletions, error.to_string()),
        };
        let mut texts: Vec<String> = faults.iter().map(ToString::to_string).collect();
        for deletion in deletions {
            let attachment = Attachment {
                container_id: deletion.container_id.clone(),
                ifname: deletion.ifname.clone(),
            };
            let known = self.is_containers(&attachment);
            // Only what is removed is forgotten: a kill in between has it removed again, which is no error.
            let carried_out = match known {
                true => self.detach(&attachment).map_err(|error| error.to_string()),
                false => Ok(()),
            };
            match carried_out.and_then(|()| journal.done(&deletion).map_err(|e| e.to_string())) {
                Ok(()) if known => {
                    let text = "pod detached: it was deleted while weftd did not run";
                    self.events().emit(Code::PodDetached, text, &[("attachment", &attachment)]);
                }
                Ok(()) => {}
                Err(why) => texts.push(format!("pod {attachment} cannot be removed: {why}")),
            }
        }
        if texts.is_empty() {
            self.clear(&Topic::Deletions);
        } else {
            self.raise(Topic::Deletions, texts.join("; "));
        }
    }

    /// Whether an attachment is known and a container's: a device of the host is no runtime's to remove.
    pub(super) fn is_containers(&self, attachment: &Attachment) -> bool {
        let port = self.allocation(attachment).map(|held| &held.record.port);
        port.is_some_and(|port| !matches!(port, PortKind::AfPacket { .. }))
    }

    /// Leaves a file beside the socket while there are pods: STATUS of the plugin is another one then, when the
    /// daemon does not run.
    pub(super) fn mark_pods(&mut self) {
        let marker = self.config.paths.socket().with_file_name(PODS_MARKER);
        let has_pods =
            self.ipam.iter().any(|held| matches!(held.record.port, PortKind::Tap { .. }));
        let marked = match (has_pods, marker.exists()) {
            (true, false) => fs::write(&marker, ""),
            (false, true) => fs::remove_file(&marker),
            (true, true) | (false, false) => Ok(()),
        };
        match marked {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("{} cannot be written or removed: {error}", marker.display());
            }
            Ok(()) | Err(_) => {}
        }
    }
}
