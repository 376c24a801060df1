//! Replays the committed fuzz corpora: `tests/fuzz/corpus/<target>/`.

#[path = "../../tests/fuzz/src/vswitch_targets.rs"]
#[allow(unreachable_pub, reason = "in the fuzz package the same file is a public module")]
mod targets;

use std::fs;
use std::path::Path;

use vswitch::frame::Frame;
use vswitch::offload::{self, VnetHeader};

#[test]
fn parse() {
    inputs("parse").for_each(|input| targets::parse(&input));
}

#[test]
fn cut() {
    inputs("cut").for_each(|input| targets::cut(&input));
}

#[test]
fn coalesce() {
    inputs("coalesce").for_each(|input| targets::coalesce(&input));
}

#[test]
fn switch() {
    inputs("switch").for_each(|input| targets::switch(&input));
}

/// The strict checks of [`offload::decode`] never refuse what Linux hands over.
#[test]
fn what_a_kernel_hands_over_is_accepted() {
    let mut super_frames = 0;
    for input in inputs("cut/kernel-") {
        let header = VnetHeader::from_slice(&input).unwrap();
        let mut frame = Frame::new();
        assert!(frame.append(&input[VnetHeader::LEN..]));
        assert_eq!(offload::decode(&header, &mut frame), Ok(()));
        let again = offload::encode(&frame);
        assert_eq!(
            (again.flags, again.gso_type, again.gso_size, again.csum_start, again.csum_offset),
            (header.flags, header.gso_type, header.gso_size, header.csum_start, header.csum_offset)
        );
        super_frames += usize::from(frame.meta.gso.is_some());
    }
    assert!(super_frames > 3, "the recording lost its super-frames");
}

/// The contents of the files whose path in the corpora begins with `prefix`; of a folder, all.
fn inputs(prefix: &str) -> impl Iterator<Item = Vec<u8>> {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus");
    let (folder, start) = prefix.split_once('/').unwrap_or((prefix, ""));
    let mut paths: Vec<_> = fs::read_dir(corpora.join(folder))
        .expect("the corpus is committed")
        .map(|entry| entry.expect("the corpus is readable").path())
        .filter(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(start))
        })
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "no inputs in {prefix}");
    paths.into_iter().map(|path| {
        eprintln!("{}", path.display());
        fs::read(path).expect("the input is readable")
    })
}
