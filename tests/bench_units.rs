//! Unit tests of the pure parts of the benchmark `overlay`, which as a program without a test harness cannot
//! hold its own.

#[path = "bench/overlay/statistics.rs"]
mod statistics;

use statistics::{Summary, ratios};

#[test]
fn the_median_is_in_the_middle() {
    let odd = Summary::of([3.0, 1.0, 20.0]).unwrap();
    assert_eq!(odd, Summary { count: 3, median: 3.0, min: 1.0, max: 20.0 });
    assert_eq!(Summary::of([4.0, 1.0, 3.0, 2.0]).unwrap().median, 2.5);
    assert_eq!(Summary::of([7.0]).unwrap().median, 7.0);
    assert_eq!(Summary::of([]), None);
    assert_eq!(Summary::of([1.0, f64::NAN]), None);
}

#[test]
fn ratios_are_of_the_same_round() {
    let subject = [Some(2.0), None, Some(9.0), Some(1.0)];
    let baseline = [Some(1.0), Some(5.0), Some(3.0), Some(0.0)];
    assert_eq!(ratios(&subject, &baseline), [2.0, 3.0]);
}
