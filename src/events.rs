//! What happens in the cluster, as lines of the log.

use overlay::gossip::Event;

/// Writes one line about `event`.
pub(crate) fn log(event: &Event) {
    match event {
        Event::MemberUp { id, name, underlay } => {
            tracing::info!(%id, %underlay, "node {name} is up");
        }
        Event::MemberDown { id, name } => tracing::warn!(%id, "node {name} is unreachable"),
        Event::MemberLeft { id, name } => tracing::info!(%id, "node {name} has left"),
        Event::Synced { with } => tracing::info!(%with, "the map is complete"),
        Event::LeaseClaimed { prefix } => tracing::info!(%prefix, "lease claimed"),
        Event::LeaseHeld { prefix } => tracing::info!(%prefix, "lease held"),
        Event::LeaseLost { prefix, winner, held: true } => {
            tracing::error!(%prefix, %winner, "lease lost to a better claim: pods with addresses in it are cut off");
        }
        Event::LeaseLost { prefix, winner, held: false } => {
            tracing::info!(%prefix, %winner, "another node has a better claim; claiming another subnet");
        }
        Event::LeaseForgotten { prefix } => {
            tracing::warn!(%prefix, "the remembered lease is outside of the configured ranges");
        }
        Event::LeaseExhausted { v6 } => {
            let family = if *v6 { "IPv6" } else { "IPv4" };
            tracing::error!("no {family} subnet is free in the cluster range");
        }
        Event::Conflict(conflict) => tracing::error!("conflict: {conflict}"),
        Event::ConflictResolved(conflict) => tracing::info!("resolved: {conflict}"),
        Event::SeedUnreachable { address, unanswered } => {
            tracing::warn!(%address, unanswered, "a seed does not answer; trying again");
        }
        Event::AddressTranslated { claimed, seen } => tracing::error!(
            %claimed, %seen,
            "a node's gossip comes from another address than it says: there is NAT between the nodes, or it chose \
             the wrong interface; set address under [underlay] there"
        ),
        Event::Slept { gap } => tracing::warn!(?gap, "this process stood still"),
        Event::MemoryRecovered { version } => {
            tracing::warn!(version, "the cluster remembers more of this node than its own disk");
        }
    }
}
