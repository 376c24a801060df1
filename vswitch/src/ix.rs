//! Indexes into the tables, each a type of its own.

/// Index of a local port in [`crate::tables::Tables`]. Stays with the port for its life and is reused afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortIx(pub u16);

impl PortIx {
    /// The host's own port, `weft0`.
    pub const HOST: Self = Self(0);

    /// The index as a `usize`.
    pub fn ix(self) -> usize {
        usize::from(self.0)
    }
}

/// Index of another node in [`crate::tables::Tables`]. Valid only together with the tables that it was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeIx(pub u16);

impl NodeIx {
    /// The index as a `usize`.
    pub fn ix(self) -> usize {
        usize::from(self.0)
    }
}
