//! Which nodes are sent to: told by the workers, asked by who probes.

use std::sync::atomic::{AtomicBool, Ordering};

use vswitch::port::NodeIx;

/// As many as there are [`NodeIx`].
const NODES: usize = 1 << 16;

/// A mark for each node. Shared by all workers: as long as it is set nobody writes to it.
#[derive(Debug)]
pub struct Activity {
    marks: Box<[AtomicBool; NODES]>,
}

impl Default for Activity {
    fn default() -> Self {
        let marks: Box<[AtomicBool]> = (0..NODES).map(|_| AtomicBool::new(false)).collect();
        Self { marks: marks.try_into().expect("there are as many as were made") }
    }
}

impl Activity {
    /// Notes that something is sent to `node`, by its number in the tables of that moment. When they have just been
    /// replaced, another node may get the mark; that one is then looked at more closely for a while.
    pub fn mark(&self, node: NodeIx) {
        let mark = &self.marks[node.ix()];
        if !mark.load(Ordering::Relaxed) {
            mark.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the node was marked since the last call.
    pub fn take(&self, node: NodeIx) -> bool {
        let mark = &self.marks[node.ix()];
        mark.load(Ordering::Relaxed) && mark.swap(false, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_taken_once() {
        let activity = Activity::default();
        activity.mark(NodeIx(u16::MAX));
        activity.mark(NodeIx(u16::MAX));
        assert!(activity.take(NodeIx(u16::MAX)));
        assert!(!activity.take(NodeIx(u16::MAX)) && !activity.take(NodeIx(0)));
    }
}
