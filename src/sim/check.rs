//! What must hold in every simulation, whatever was done in it.

use super::cluster::Cluster;

impl Cluster {
    /// Checks that every packet is accounted for.
    ///
    /// - On every node, in its present and in all earlier lives:
    ///   received + originated = delivered + answered + dropped, exactly, with nothing left in a queue.
    /// - All buffers have come back to their pool.
    /// - On the underlay: sent + duplicated = delivered + unclaimed + lost + cut + too long + on the way.
    ///
    /// `Drop` checks it, too, unless the test is failing already.
    ///
    /// # Panics
    /// If one of these does not hold, with all that is wrong.
    pub fn check(&self) {
        let violations = self.violations();
        assert!(violations.is_empty(), "not all is accounted for:\n{}", violations.join("\n"));
    }

    /// What [`Cluster::check`] would complain about.
    pub fn violations(&self) -> Vec<String> {
        let machines = self.machines.iter();
        let nodes = machines
            .flat_map(|machine| machine.violations.iter().cloned().chain(machine.violations_now()));
        let mut violations: Vec<_> = nodes.collect();
        let totals = self.underlay_totals();
        let entered = totals.sent + totals.duplicated;
        let ended = totals.delivered
            + totals.unclaimed
            + totals.lost
            + totals.cut
            + totals.too_long
            + totals.on_the_way;
        if entered != ended {
            violations.push(format!("underlay: {entered} entered, {ended} ended: {totals:?}"));
        }
        violations
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.check();
        }
    }
}
