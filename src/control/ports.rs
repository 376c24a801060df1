//! Numbers for local ports.

use std::collections::BTreeSet;

use vswitch::port::PortIx;

/// Hands out port numbers from 1 up; 0 is the host's.
#[derive(Debug)]
pub(super) struct PortNumbers {
    used: BTreeSet<u16>,
    ports_max: u16,
}

impl PortNumbers {
    /// Numbers below `ports_max`.
    pub(super) fn new(ports_max: u16) -> Self {
        Self { used: BTreeSet::from([PortIx::HOST.0]), ports_max }
    }

    /// Takes the lowest free number; `None` when all are in use.
    pub(super) fn take(&mut self) -> Option<PortIx> {
        let free = (0..self.ports_max).find(|number| !self.used.contains(number))?;
        self.used.insert(free);
        Some(PortIx(free))
    }

    /// Gives a number back.
    pub(super) fn put(&mut self, port: PortIx) {
        self.used.remove(&port.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_distinct_limited_and_reused() {
        let mut numbers = PortNumbers::new(3);
        assert_eq!(numbers.take(), Some(PortIx(1)));
        assert_eq!(numbers.take(), Some(PortIx(2)));
        assert_eq!(numbers.take(), None);
        numbers.put(PortIx(1));
        assert_eq!(numbers.take(), Some(PortIx(1)));
    }
}
