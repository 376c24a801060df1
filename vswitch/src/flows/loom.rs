//! The orders in which two workers can meet, with up to two preemptions, each for up to 30 s. See [`crate::sync`] for how to run this.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use ::loom::sync::Arc;
use ::loom::thread;

use super::cell::Cell;
use super::*;

/// Two preemptions find what three do, in a thousandth of the time.
fn check(test: impl Fn() + Send + Sync + 'static) {
    let mut model = ::loom::model::Builder::new();
    model.preemption_bound = Some(2);
    // What takes longer than anybody waits is tried for as long as somebody does.
    model.max_duration = Some(Duration::from_secs(30));
    model.max_branches = 100_000;
    model.check(test);
}

#[test]
fn words_are_read_as_they_were_written_together() {
    check(|| {
        let cell = Arc::new(Cell::<2>::new());
        let writer = Arc::clone(&cell);
        let thread = thread::spawn(move || {
            writer.write(&[1, 1]);
            writer.write(&[2, 2]);
        });
        if let Some((epoch, [a, b])) = cell.read() {
            assert_eq!(a, b);
            assert_eq!(u64::from(epoch), a);
        }
        thread.join().unwrap();
    });
}

fn flow(client: u8, endpoint: u8, masquerade: bool) -> NewFlow {
    let address = |n| IpAddr::from([10, 0, 0, n]);
    NewFlow {
        original: Tuple {
            source: (address(client), 40_000),
            destination: (address(96), 80),
            protocol: FlowProtocol::Tcp,
        },
        endpoint: (address(endpoint), 8080),
        masquerade: masquerade.then(|| address(50)),
        service: 1,
        generation: 1,
        admitted: None,
    }
}

#[test]
fn of_two_workers_one_enters_the_flow_and_both_get_it() {
    let now = Instant::now();
    check(move || {
        let table = Arc::new(FlowTable::new(2, 1, now));
        let other = Arc::clone(&table);
        let thread = thread::spawn(move || other.insert(&flow(1, 8, false), Ticks(0)).unwrap());
        let mine = table.insert(&flow(1, 9, false), Ticks(0)).unwrap();
        let theirs = thread.join().unwrap();
        assert_eq!(mine.to(), theirs.to());
        assert_eq!(table.len(), 1);
    });
}

#[test]
fn two_clients_never_get_the_same_port() {
    let now = Instant::now();
    check(move || {
        let table = Arc::new(FlowTable::new(2, 1, now));
        let other = Arc::clone(&table);
        let thread = thread::spawn(move || other.insert(&flow(1, 9, true), Ticks(0)).unwrap());
        let mine = table.insert(&flow(2, 9, true), Ticks(0)).unwrap();
        let theirs = thread.join().unwrap();
        assert_ne!(mine.to().source, theirs.to().source);
        assert_eq!(table.len(), 2);
    });
}

#[test]
fn a_slot_that_changes_hands_is_never_taken_for_the_flow_that_it_was() {
    let now = Instant::now();
    check(move || {
        let table = Arc::new(FlowTable::new(1, 1, now));
        let old = table.insert(&flow(1, 8, false), Ticks(0)).unwrap();
        let other = Arc::clone(&table);
        let thread = thread::spawn(move || {
            other.remove(&old);
            other.insert(&flow(2, 9, false), Ticks(0)).unwrap()
        });
        if let Some(found) = table.find(&flow(1, 8, false).original, Ticks(0)) {
            assert_eq!(found.to(), old.to());
            table.note(&found, Ticks(0), 1, 60, tcp::flag::RST);
            table.remove(&found);
        }
        let new = thread.join().unwrap();
        let found = table.find(&flow(2, 9, false).original, Ticks(0));
        assert_eq!(
            found.map(|hit| hit.to()),
            Some(new.to()),
            "a late packet of the old one harms nobody"
        );
        assert_eq!(table.len(), 1);
        // A table of one flow has one count for all endpoints.
        assert_eq!(table.connections((IpAddr::from([10, 0, 0, 9]), 8080)), 1);
    });
}

#[test]
fn what_admits_one_flow_says_nothing_of_the_next_in_its_place() {
    let now = Instant::now();
    check(move || {
        let table = Arc::new(FlowTable::new(1, 1, now));
        let first = table.insert(&flow(1, 9, false), Ticks(0)).unwrap();
        let other = Arc::clone(&table);
        let thread = thread::spawn(move || other.set_admitted(&first, 5));
        table.remove(&first);
        // There may be no room at this moment.
        if let Ok(second) = table.insert(&flow(2, 9, false), Ticks(0)) {
            assert!(!second.was_admitted());
            let again = table.find(&flow(2, 9, false).original, Ticks(0));
            assert!(again.is_none_or(|hit| !hit.was_admitted()));
        }
        thread.join().unwrap();
    });
}
