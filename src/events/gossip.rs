//! What gossip tells, as events.

use overlay::gossip::Event;
use overlay::subnet::Conflict;

use super::{Code, EventLog};

/// Tells what gossip has to tell.
pub(crate) fn log_gossip(log: &EventLog, event: &Event) {
    match event {
        Event::MemberUp { id, name, underlay } => {
            let about: [(&str, &dyn ToString); 3] =
                [("node", name), ("id", id), ("underlay", underlay)];
            log.emit(Code::NodeUp, format!("node {name} is up"), &about);
        }
        Event::MemberDown { id, name } => {
            let about: [(&str, &dyn ToString); 2] = [("node", name), ("id", id)];
            log.emit(Code::NodeUnreachable, format!("node {name} is unreachable"), &about);
        }
        Event::MemberLeft { id, name } => {
            let about: [(&str, &dyn ToString); 2] = [("node", name), ("id", id)];
            log.emit(Code::NodeLeft, format!("node {name} has left"), &about);
        }
        Event::Synced { with } => log.emit(Code::Synced, "the map is complete", &[("with", with)]),
        Event::LeaseClaimed { prefix } => {
            log.emit(Code::LeaseClaimed, "lease claimed", &[("prefix", prefix)]);
        }
        Event::ClusterJoined { former, origin } => {
            let text = "this node's cluster was born apart from another one, has met it, and becomes a part of it: what \
                        both have given away is settled by the rule of `weft leases`";
            log.emit(Code::ClusterJoined, text, &[("former", former), ("origin", origin)]);
        }
        Event::LeaseHeld { prefix } => {
            log.emit(Code::LeaseHeld, "lease held", &[("prefix", prefix)]);
        }
        Event::LeaseLost { prefix, winner, held: true } => {
            let text = "lease lost to a better claim: its pods keep their addresses as far as the winner has not \
                        given them to pods of its own; new pods get addresses of another lease";
            log.emit(Code::LeaseLost, text, &[("prefix", prefix), ("winner", winner)]);
        }
        Event::LeaseLost { prefix, winner, held: false } => {
            let text = "another node has a better claim; claiming another subnet";
            log.emit(Code::LeaseYielded, text, &[("prefix", prefix), ("winner", winner)]);
        }
        Event::LeaseUnproven { prefix } => {
            let text =
                "the remembered lease is not used before it is certain that nobody else uses it";
            log.emit(Code::LeaseUnproven, text, &[("prefix", prefix)]);
        }
        Event::LeaseReleased { prefix, why } => {
            let text = format!("lease released: {}", why.describe());
            log.emit(Code::LeaseReleased, text, &[("prefix", prefix)]);
        }
        Event::LeaseBlocked { prefix, by } => {
            let text = "the subnet that is fixed for this node is fixed for another one, which has it: change one \
                        of the two";
            log.emit(Code::LeaseBlocked, text, &[("prefix", prefix), ("by", by)]);
        }
        Event::LeaseExhausted { v6 } => {
            let family = if *v6 { "IPv6" } else { "IPv4" };
            let text = format!("no {family} subnet is free in the cluster range");
            log.emit(Code::LeaseExhausted, text, &[]);
        }
        Event::ExceptionsLeftOut { left_out } => {
            let text =
                "more pods have addresses of a lost lease than can be told to others: restart them";
            log.emit(Code::ExceptionsLeftOut, text, &[("left_out", left_out)]);
        }
        Event::Conflict(conflict) => {
            let code = match conflict {
                Conflict::Identity { .. } => Code::ConflictIdentity,
                Conflict::Address { .. } => Code::ConflictAddress,
                Conflict::Lease { .. } => Code::ConflictLease,
                Conflict::Exception { .. } => Code::ConflictException,
            };
            log.emit(code, format!("conflict: {conflict}"), &[]);
        }
        Event::ConflictResolved(conflict) => {
            log.emit(Code::ConflictResolved, format!("resolved: {conflict}"), &[]);
        }
        Event::SeedUnreachable { address, unanswered } => {
            let about: [(&str, &dyn ToString); 2] =
                [("address", address), ("unanswered", unanswered)];
            log.emit(Code::SeedUnreachable, "a seed does not answer; trying again", &about);
        }
        Event::AddressTranslated { claimed, seen } => {
            let text = "a node's gossip comes from another address than it says: there is NAT between the nodes, or \
                        it chose the wrong interface; set address under [underlay] there";
            log.emit(Code::AddressTranslated, text, &[("claimed", claimed), ("seen", seen)]);
        }
        Event::Stranger(stranger) => {
            let reason = stranger.reason.name();
            let about: [(&str, &dyn ToString); 2] =
                [("address", &stranger.address), ("reason", &reason)];
            log.emit(Code::Stranger, format!("gossip refused: {stranger}"), &about);
        }
        Event::Slept { gap } => {
            log.emit(Code::Slept, format!("this process stood still for {gap:.1?}"), &[]);
        }
        Event::MemoryRecovered { version } => {
            let text = "the cluster remembers more of this node than its own disk";
            log.emit(Code::MemoryRecovered, text, &[("version", version)]);
        }
    }
}
