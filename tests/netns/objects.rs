//! Manifests in the directory of running daemons: taken up, refused with a reason, and gone with their file.

// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]

use std::fs;

use crate::common::{TestLab, eventually, may_make_labs};
use weft::admin::api::ProblemTopic;
use weft::lab::LabConfig;

const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: NAME}
spec:
  ports: [{port: 80}]
";

#[test]
fn objects_come_and_go_with_their_files() {
    if !may_make_labs() {
        return;
    }
    let config = LabConfig { nodes: 1, pods_per_node: 0, ..LabConfig::new("objects") };
    let mut lab = TestLab::up(config);
    let dir = lab.manifests();
    let names = |lab: &TestLab| {
        let listing = lab.admin("n1").unwrap().objects().unwrap();
        listing.accepted.into_iter().map(|object| object.name).collect::<Vec<_>>()
    };
    assert!(names(&lab).is_empty());

    fs::write(dir.join("a.yaml"), SERVICE.replace("NAME", "a")).unwrap();
    eventually("the new file is read", || names(&lab) == ["a"]);
    let wrong = SERVICE.replace("NAME", "b").replace("80", "0");
    fs::write(dir.join("a.yaml"), SERVICE.replace("NAME", "a") + "---\n" + &wrong).unwrap();
    let problems = |lab: &TestLab| lab.admin("n1").unwrap().status().unwrap().problems;
    eventually("the wrong object is told", || {
        problems(&lab).iter().any(|problem| problem.topic == ProblemTopic::Objects)
    });
    assert_eq!(names(&lab), ["a"]);
    let refused = lab.admin("n1").unwrap().objects().unwrap().refused;
    assert_eq!(refused[0].to_string(), "a.yaml:11: spec.ports[0].port: 0 is no port: 1 to 65535");
    let objects = lab.admin("n1").unwrap().status().unwrap().objects;
    assert_eq!((objects.files, objects.accepted, objects.refused), (1, 1, 1));
    let log = fs::read_to_string(lab.log_path("n1")).unwrap();
    assert!(log.contains("a.yaml:11: spec.ports[0].port"), "{log}");

    // What is there when the daemon starts is in force when it says that it runs.
    lab.stop("n1").unwrap();
    fs::remove_file(dir.join("a.yaml")).unwrap();
    fs::write(dir.join("c.yaml"), SERVICE.replace("NAME", "c")).unwrap();
    lab.start("n1").unwrap();
    assert_eq!(names(&lab), ["c"]);
    assert!(problems(&lab).iter().all(|problem| problem.topic != ProblemTopic::Objects));
    fs::remove_file(dir.join("c.yaml")).unwrap();
    eventually("nothing is left", || names(&lab).is_empty());
    lab.finish();
}
