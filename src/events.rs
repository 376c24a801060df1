//! What happens in the cluster, as lines of the log.

use overlay::gossip::Event;

/// Writes one line about `event`.
pub(crate) fn log(event: &Event) {
    let code = event.code();
    match event {
        Event::MemberUp { id, name, underlay } => {
            tracing::info!(code, %id, %underlay, "node {name} is up");
        }
        Event::MemberDown { id, name } => tracing::warn!(code, %id, "node {name} is unreachable"),
        Event::MemberLeft { id, name } => tracing::info!(code, %id, "node {name} has left"),
        Event::Synced { with } => tracing::info!(code, %with, "the map is complete"),
        Event::LeaseClaimed { prefix } => tracing::info!(code, %prefix, "lease claimed"),
        Event::LeaseHeld { prefix } => tracing::info!(code, %prefix, "lease held"),
        Event::LeaseLost { prefix, winner, held: true } => {
            tracing::error!(
                code, %prefix, %winner,
                "lease lost to a better claim: its pods keep their addresses as far as the winner has not given them \
                 to pods of its own; new pods get addresses of another lease"
            );
        }
        Event::LeaseLost { prefix, winner, held: false } => {
            tracing::info!(code, %prefix, %winner, "another node has a better claim; claiming another subnet");
        }
        Event::LeaseUnproven { prefix } => {
            tracing::info!(code, %prefix, "asking whether the remembered lease still is this node's");
        }
        Event::LeaseReleased { prefix, why } => {
            tracing::warn!(code, %prefix, "lease released: {}", why.describe());
        }
        Event::LeaseBlocked { prefix, by } => tracing::error!(
            code, %prefix, %by,
            "the subnet that is fixed for this node is fixed for another one, which has it: change one of the two"
        ),
        Event::LeaseExhausted { v6 } => {
            let family = if *v6 { "IPv6" } else { "IPv4" };
            tracing::error!(code, "no {family} subnet is free in the cluster range");
        }
        Event::ExceptionsLeftOut { left_out } => tracing::error!(
            code,
            left_out,
            "more pods have addresses of a lost lease than can be told to others: restart them"
        ),
        Event::Conflict(conflict) => tracing::error!(code, "conflict: {conflict}"),
        Event::ConflictResolved(conflict) => tracing::info!(code, "resolved: {conflict}"),
        Event::SeedUnreachable { address, unanswered } => {
            tracing::warn!(code, %address, unanswered, "a seed does not answer; trying again");
        }
        Event::AddressTranslated { claimed, seen } => tracing::error!(
            code, %claimed, %seen,
            "a node's gossip comes from another address than it says: there is NAT between the nodes, or it chose \
             the wrong interface; set address under [underlay] there"
        ),
        Event::Slept { gap } => tracing::warn!(code, ?gap, "this process stood still"),
        Event::Stranger(stranger) => {
            let reason = stranger.reason.name();
            tracing::warn!(code, address = %stranger.address, reason, "gossip refused: {stranger}");
        }
        Event::MemoryRecovered { version } => {
            tracing::warn!(
                code,
                version,
                "the cluster remembers more of this node than its own disk"
            );
        }
    }
}
