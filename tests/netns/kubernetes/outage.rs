//! What happens to pods when the API server is gone, and what nodes tell it while it is there.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use weft::admin::api::ProblemTopic;
use weft::lab::probe::{EchoServer, Ping};

use super::{CLUSTER_IP, Cluster, is_served, service, slice};
use crate::apiserver::Recorded;
use crate::common::place::{leases, pod};
use crate::common::traffic::both_ways;
use crate::common::{eventually, may_make_labs};

#[test]
fn a_cluster_lives_with_its_api_server_and_without() {
    if !may_make_labs() {
        return;
    }
    let extra = "[services]\nload_balancer_pool = [\"198.51.100.0/28\"]\n";
    let mut cluster = Cluster::new("kube", 3, extra);
    let store = cluster.store.clone();
    store.set("services", &service("web", "ClusterIP", &CLUSTER_IP.to_string()));
    store.set("services", &service("out", "LoadBalancer", "10.96.0.21"));
    let mut names = slice([192, 0, 2, 1].into(), 80);
    names["metadata"]["name"] = "by-name".into();
    names["addressType"] = "FQDN".into();
    store.set("endpointslices", &names);

    // The control plane's subnets are what nodes have, and they find each other by their Node objects.
    cluster.lab.add_nodes(3).unwrap();
    cluster.lab.wait_for_map(&["n1", "n2", "n3"], Duration::from_secs(20)).unwrap();
    for number in 1..=3 {
        let expected = format!("10.244.{}.0/24", 100 + number).parse().unwrap();
        assert_eq!(leases(&cluster.lab, &format!("n{number}")), [expected]);
    }
    let names = ["n1", "n2", "n3"].map(|node| cluster.lab.add_pod(node).unwrap());
    let pods = names.map(|name| pod(&cluster.lab, &name));
    both_ways(&pods[0], &pods[1], 100_000);

    // Endpoints are what slices say, whatever the selector.
    assert!(!is_served(&pods[0]));
    let echo = EchoServer::start(&pods[2].namespace, pods[2].addresses[0]).unwrap();
    store.set("endpointslices", &slice(pods[2].addresses[0], echo.port()));
    for end in &pods[..2] {
        eventually("the Service has its endpoint", || is_served(end));
    }
    assert_eq!((cluster.api("n1").synced, cluster.api("n1").stale_s), (true, None));

    // What people look for in the API: the node's condition, the load balancer's address, an event.
    eventually("every node's network is said to be up", || {
        (1..=3).all(|number| {
            let node = store.get("nodes", "", &format!("n{number}")).unwrap();
            let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
            conditions
                .iter()
                .any(|it| it["type"] == "NetworkUnavailable" && it["status"] == "False")
        })
    });
    eventually("the load balancer has an address", || {
        let service = store.get("services", "default", "out").unwrap();
        let ip = service["status"]["loadBalancer"]["ingress"][0]["ip"].clone();
        ip.as_str().is_some_and(|ip| ip.starts_with("198.51.100."))
    });
    eventually("the refused slice has its event", || {
        store.all("events").iter().any(|event| event["regarding"]["name"] == "by-name")
    });
    let events = store.all("events");
    assert_eq!(events.len(), 1, "one node tells, and once: {events:?}");
    let refused = store.get("endpointslices", "default", "by-name").unwrap();
    assert_eq!(events[0]["regarding"]["uid"], refused["metadata"]["uid"]);
    assert!(events[0]["note"].as_str().unwrap().starts_with("addressType: names"), "{events:?}");

    // Every request is in the role, and all of the role is used.
    let granted = crate::role::granted(&fs::read_to_string("conf/kubernetes/weft.yaml").unwrap());
    let made = || store.requests().iter().map(rule_of).collect::<BTreeSet<_>>();
    eventually("all of the role is used", || granted.is_subset(&made()));
    let more: Vec<_> = made().difference(&granted).cloned().collect();
    assert!(more.is_empty(), "not granted: {more:?}");

    // Without the server: nothing is lost, a new pod gets its address, a daemon starts.
    let lists = || store.requests().iter().filter(|request| request.verb == "list").count();
    let listed = lists();
    let (source, target) = (pods[0].namespace.clone(), pods[1].addresses[0]);
    let pinging = std::thread::spawn(move || {
        let interval = Duration::from_millis(10);
        Ping { count: 1000, interval, ..Ping::new(target) }.run(&source)
    });
    cluster.stop_server();
    eventually("the nodes miss it", || {
        ["n1", "n2", "n3"].iter().all(|node| cluster.api(node).stale_s.is_some())
    });
    let status = cluster.lab.admin("n2").unwrap().status().unwrap();
    assert!(status.ready);
    let topics: Vec<_> = status.problems.iter().map(|problem| problem.topic).collect();
    assert!(topics.contains(&ProblemTopic::Kubernetes), "{:?}", status.problems);
    assert!(is_served(&pods[0]));
    let late = cluster.lab.add_pod("n2").unwrap();
    both_ways(&pods[0], &pod(&cluster.lab, &late), 10_000);
    cluster.start_server();
    let echo = EchoServer::start(&pods[1].namespace, pods[1].addresses[0]).unwrap();
    store.set("endpointslices", &slice(pods[1].addresses[0], echo.port()));
    eventually("the nodes hear it again", || {
        ["n1", "n2", "n3"].iter().all(|node| cluster.api(node).stale_s.is_none())
    });
    eventually("the Service has its new endpoint", || is_served(&pods[0]));
    let report = pinging.join().unwrap().unwrap();
    assert_eq!((report.sent, report.lost()), (1000, 0), "{report:?}");
    assert_eq!(lists(), listed, "watches go on from where they were");

    cluster.stop_server();
    cluster.lab.stop("n3").unwrap();
    cluster.lab.start("n3").unwrap();
    assert_eq!(leases(&cluster.lab, "n3"), ["10.244.103.0/24".parse().unwrap()]);
    // Its pods are shut until it knows what policies there are; all others go on.
    both_ways(&pods[0], &pods[1], 10_000);
    cluster.start_server();
    eventually("the objects are known on the node that began without them", || {
        cluster.api("n3").synced
    });
    both_ways(&pods[0], &pods[2], 10_000);
    cluster.lab.finish();
}

/// A request as a rule of a role would have to permit it.
fn rule_of(request: &Recorded) -> crate::role::Rule {
    let Recorded { verb, group, resource, namespace, name } = request;
    // Only the Lease is of one namespace; all else is of the cluster, whichever object it is.
    let is_lease = resource == "leases";
    let is_named = is_lease && verb != "create";
    crate::role::Rule {
        verb: verb.clone(),
        group: group.clone(),
        resource: resource.clone(),
        namespace: if is_lease { namespace.clone() } else { String::new() },
        name: if is_named { name.clone() } else { String::new() },
    }
}
