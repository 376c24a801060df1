//! Who is measured when: contestants in turns, round by round.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use weft::lab::Interrupted;

use super::args::Args;
use super::lines::Job;
use super::measure::{self, Figures, Timing};
use super::results::Results;
use super::tools;
use super::topology::{Contestant, LINK, Layout, Site, Stage};
use super::wire::{Watch, Wire};

/// What a run consists of.
#[derive(Debug)]
pub(crate) struct Schedule {
    scenes: Vec<Scene>,
    rounds: usize,
    timing: Timing,
}

/// Stages that stand at the same time, and what is measured on them.
#[derive(Debug)]
struct Scene {
    wire: Wire,
    layout: Layout,
    contestants: Vec<Contestant>,
    jobs: Vec<Job>,
    rounds: usize,
}

impl Schedule {
    /// What the arguments ask for. Notes what cannot be had.
    pub(crate) fn new(args: &Args, results: &mut Results) -> Result<Self> {
        tools::require(&[tools::IP, tools::BRIDGE])?;
        if args.wires().iter().any(|wire| !wire.has_offloads()) {
            tools::require(&[tools::ETHTOOL]).context(
                "the wires 1500 and 9000 are made by ethtool; without it, measure on `--wire ideal,v6`",
            )?;
        }
        let timing = Timing { warm_up: args.warm_up(), duration: args.duration() };
        let mut schedule = Self { scenes: Vec::new(), rounds: args.rounds(), timing };
        let everybody = contestants(args, results);
        for wire in args.wires() {
            schedule.add_scenes(args, wire, &everybody);
        }
        ensure!(
            !schedule.scenes.is_empty(),
            "nothing is left to measure: see --help for what belongs on which wire"
        );
        Ok(schedule)
    }

    fn add_scenes(&mut self, args: &Args, wire: Wire, everybody: &[Contestant]) {
        let wanted = |job: &Job| args.wants(*job) && job.belongs_on(wire);
        let jobs: Vec<Job> = Job::PAIR.into_iter().filter(wanted).collect();
        let mut contestants: Vec<Contestant> = everybody.to_vec();
        contestants.retain(|contestant| contestant.suits(wire));
        if wire == Wire::V6 {
            contestants.push(Contestant::WeftOverV4);
        }
        if !jobs.is_empty() {
            let layout = Layout { nodes: 2, pods_per_node: 2 };
            self.scenes.push(Scene { wire, layout, contestants, jobs, rounds: self.rounds });
        }
        for (job, nodes, pods_per_node, rounds) in
            [(Job::Mesh, 3, 8, self.rounds), (Job::Idle, 2, 10, 1), (Job::Full, 1, 250, 1)]
        {
            if wanted(&job) {
                let layout = Layout { nodes, pods_per_node };
                let mut contestants = everybody.to_vec();
                contestants.retain(|contestant| job.suits(contestant));
                self.scenes.push(Scene { wire, layout, contestants, jobs: vec![job], rounds });
            }
        }
    }

    /// Measures all. What fails is noted, and the rest goes on.
    ///
    /// # Errors
    /// Only when interrupted.
    pub(crate) fn run(&self, site: &Site, results: &mut Results) -> Result<()> {
        let start = Instant::now();
        for (ix, scene) in self.scenes.iter().enumerate() {
            eprintln!(
                "[{:>4} s] {}/{}: {scene}",
                start.elapsed().as_secs(),
                ix + 1,
                self.scenes.len()
            );
            scene.run(self.timing, site, results, start)?;
        }
        eprintln!("[{:>4} s] done", start.elapsed().as_secs());
        Ok(())
    }

    fn length(&self) -> Duration {
        self.scenes.iter().map(|scene| scene.length(self.timing)).sum()
    }
}

/// Who is asked for and can be measured. Notes who cannot.
fn contestants(args: &Args, results: &mut Results) -> Vec<Contestant> {
    let mut contestants = vec![Contestant::Kernel, Contestant::Weft];
    contestants.extend(args.against.clone().map(Contestant::OtherWeft));
    if args.all {
        contestants.extend(Contestant::OTHERS);
    }
    contestants.retain(|contestant| match contestant.missing() {
        Some(missing) => {
            results.left_out.push(format!("{contestant}: not installed: {missing}"));
            false
        }
        None => true,
    });
    contestants
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let minutes = self.length().as_secs_f64() / 60.0;
        let measurements: usize = self.scenes.iter().map(Scene::measurements).sum();
        write!(
            f,
            "{measurements} measurements of {:.1} s in {} scenes: about {minutes:.0} minutes. Let nothing else run.",
            self.timing.duration.as_secs_f64(),
            self.scenes.len()
        )
    }
}

impl Scene {
    fn run(
        &self,
        timing: Timing,
        site: &Site,
        results: &mut Results,
        start: Instant,
    ) -> Result<()> {
        let mut stages = Vec::new();
        for contestant in &self.contestants {
            let built = Stage::build(contestant.clone(), self.wire, self.layout, site)
                .and_then(|stage| self.check(stage, site));
            match built {
                Ok(stage) => stages.push(stage),
                Err(error) if error.is::<Interrupted>() => return Err(error),
                Err(error) => note(results, format!("{error:#}")),
            }
        }
        for round in 0..self.rounds {
            for job in &self.jobs {
                // Every second round backwards: who is measured first has no advantage by that.
                let mut turns: Vec<&Stage> = stages.iter().collect();
                if round % 2 == 1 {
                    turns.reverse();
                }
                turns.retain(|stage| job.suits(&stage.contestant));
                for stage in turns {
                    let (wire, name, who) = (self.wire.name(), job.name(), &stage.contestant);
                    let what = format!("wire {wire}, round {}, {name}, {who}", round + 1);
                    match self.measure(*job, stage, timing, site) {
                        Ok(figures) => {
                            let shown: Vec<String> = figures
                                .iter()
                                .map(|(figure, value)| format!("{figure} {value:.2}"))
                                .collect();
                            let elapsed = start.elapsed().as_secs();
                            eprintln!("[{elapsed:>4} s] {what}: {}", shown.join(", "));
                            results.add(self.wire, who, round, figures);
                        }
                        Err(error) if error.is::<Interrupted>() => return Err(error),
                        Err(error) => note(results, format!("{what}: {error:#}")),
                    }
                }
            }
        }
        for stage in stages {
            let contestant = stage.contestant.clone();
            if let Err(error) = stage.down() {
                note(results, format!("removing {contestant}: {error:#}"));
            }
        }
        Ok(())
    }

    /// Measures, again if it took so long that the machine or this process must have been suspended.
    fn measure(&self, job: Job, stage: &Stage, timing: Timing, site: &Site) -> Result<Figures> {
        let limit = self.length_of_one(timing) + SUSPENDED_MIN;
        let mut attempts = 0;
        loop {
            attempts += 1;
            site.interrupt.check()?;
            let start = Instant::now();
            let measured = measure::measure(job, stage, timing, &site.interrupt);
            site.interrupt.check()?;
            if start.elapsed() < limit || attempts == ATTEMPTS_MAX {
                return measured;
            }
            let elapsed = start.elapsed().as_secs();
            eprintln!("{} on {}: took {elapsed} s, measured again", job.name(), stage.contestant);
        }
    }

    /// Pods reach each other, and the wire is what it is called.
    fn check(&self, stage: Stage, site: &Site) -> Result<Stage> {
        measure::wait_until_reachable(&stage, &site.interrupt)?;
        if self.wire.has_offloads() || self.layout.nodes != 2 {
            return Ok(stage);
        }
        let longest = usize::from(self.wire.mtu()) + ETHERNET_HEADER_LEN;
        for (node, other) in [(0, 1), (1, 0)] {
            let watch = Watch::start(&stage.node(other)?, LINK)?;
            measure::send_a_little(&stage, node, other)?;
            let seen = watch.finish()?;
            ensure!(
                seen.count > 0 && seen.len_max <= longest,
                "{} on wire {}: {} frames reached node {}, the longest of {} bytes; it may have {longest}",
                stage.contestant,
                self.wire.name(),
                seen.count,
                other + 1,
                seen.len_max,
            );
        }
        Ok(stage)
    }

    fn measurements(&self) -> usize {
        let suited = |job: &Job| self.contestants.iter().filter(|one| job.suits(one)).count();
        self.rounds * self.jobs.iter().map(suited).sum::<usize>()
    }

    /// About how long one measurement takes.
    fn length_of_one(&self, timing: Timing) -> Duration {
        match self.jobs[..] {
            [Job::Idle | Job::Full] => measure::IDLE_TIME,
            _ => timing.warm_up + timing.duration + OVERHEAD,
        }
    }

    /// About how long it takes.
    fn length(&self, timing: Timing) -> Duration {
        let pods = u32::from(self.layout.nodes) * u32::from(self.layout.pods_per_node);
        let build = (BUILD + BUILD_POD * pods) * u32::try_from(self.contestants.len()).unwrap_or(1);
        build + self.length_of_one(timing) * u32::try_from(self.measurements()).unwrap_or(u32::MAX)
    }
}

impl fmt::Display for Scene {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let contestants: Vec<&str> = self.contestants.iter().map(Contestant::name).collect();
        write!(
            f,
            "wire {}, {} nodes with {} pods each: {}",
            self.wire.name(),
            self.layout.nodes,
            self.layout.pods_per_node,
            contestants.join(", ")
        )
    }
}

fn note(results: &mut Results, failure: String) {
    eprintln!("FAILED: {failure}");
    results.failures.push(failure);
}

/// Of Ethernet II.
const ETHERNET_HEADER_LEN: usize = 14;

/// How much longer than planned a measurement takes if it was suspended: longer than anything else lets it
/// wait.
const SUSPENDED_MIN: Duration = Duration::from_secs(8);

/// How often something is measured that takes too long.
const ATTEMPTS_MAX: u32 = 3;

/// What a measurement takes besides its time, for the estimate.
const OVERHEAD: Duration = Duration::from_millis(100);

/// What the making of a stage takes, for the estimate.
const BUILD: Duration = Duration::from_secs(3);

/// What the making of a pod takes, for the estimate.
const BUILD_POD: Duration = Duration::from_millis(150);
