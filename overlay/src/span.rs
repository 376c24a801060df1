//! Address ranges as numbers.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

/// All addresses of a prefix, as numbers. The two families' numbers are not told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span {
    pub(crate) first: u128,
    pub(crate) last: u128,
}

impl Span {
    pub(crate) fn of(prefix: IpNetwork) -> Self {
        let (width, len) = match prefix {
            IpNetwork::V4(v4) => (32, u32::from(v4.prefix())),
            IpNetwork::V6(v6) => (128, u32::from(v6.prefix())),
        };
        let first = first(prefix);
        // A shift by the whole width is no shift in Rust.
        let others = 1_u128.checked_shl(width - len).map_or(u128::MAX, |count| count - 1);
        Self { first, last: first + others }
    }

    pub(crate) fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// The first address of a prefix, as a number.
pub(crate) fn first(prefix: IpNetwork) -> u128 {
    number(prefix.network())
}

/// An address as a number.
pub(crate) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(text: &str) -> Span {
        Span::of(text.parse().unwrap())
    }

    #[test]
    fn a_span_has_all_addresses_of_its_prefix() {
        assert_eq!(span("10.0.0.0/24").last - span("10.0.0.0/24").first, 255);
        assert_eq!(span("0.0.0.0/0"), Span { first: 0, last: u128::from(u32::MAX) });
        assert_eq!(span("::/0"), Span { first: 0, last: u128::MAX });
        assert!(span("10.0.0.0/23").overlaps(span("10.0.1.0/24")));
        assert!(!span("10.0.0.0/24").overlaps(span("10.0.1.0/24")));
    }
}
