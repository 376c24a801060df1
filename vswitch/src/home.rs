//! The sources of one worker, which the keeper may serve in its place: see [`crate::load`].
//!
//! Whoever serves a source holds the lock of its home for the batch, and sends what the batch brought before
//! the sources change hands. So a flow keeps its order. Nobody else wants the lock but for a change of
//! ports, so it costs a worker next to nothing.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use crate::port::{PortIx, Source};

/// A worker with more sources than this does not rest: to move them would take too long.
pub(crate) const RESTING_MAX: usize = 64;

/// The token of a worker's event descriptor.
pub(crate) const WAKE_TOKEN: u64 = u64::MAX;

/// Which source of which home an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) home: usize,
    pub(crate) slot: usize,
}

impl Place {
    pub(crate) fn of_token(token: u64) -> Option<Self> {
        let [home, slot] = [token >> 32, token & 0xffff_ffff].map(usize::try_from);
        (token != WAKE_TOKEN).then_some(Self { home: home.ok()?, slot: slot.ok()? })
    }

    fn token(self) -> u64 {
        (self.home as u64) << 32 | self.slot as u64
    }
}

/// The sources of a worker, and how to reach it.
#[derive(Debug)]
pub(crate) struct Home {
    ix: usize,
    /// What the worker waits on.
    epoll: OwnedFd,
    wake: OwnedFd,
    sources: Mutex<Sources>,
    is_resting: AtomicBool,
    load: AtomicU8,
}

/// A worker's sources.
#[derive(Debug)]
pub(crate) struct Sources {
    slots: Vec<Option<Slot>>,
    /// The home of the worker that serves them.
    keeper: Option<Arc<Home>>,
}

/// One source.
#[derive(Debug)]
pub(crate) struct Slot {
    /// `None` for the tunnel.
    pub(crate) port: Option<PortIx>,
    pub(crate) source: Box<dyn Source>,
    /// Its last batch held much, and so may the next.
    pub(crate) is_bulky: bool,
}

impl Home {
    pub(crate) fn new(ix: usize) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        watch(&epoll, wake.as_fd(), WAKE_TOKEN)?;
        Ok(Self {
            ix,
            epoll,
            wake,
            sources: Mutex::new(Sources { slots: Vec::new(), keeper: None }),
            is_resting: AtomicBool::new(false),
            load: AtomicU8::new(0),
        })
    }

    /// What its worker waits on.
    pub(crate) fn epoll(&self) -> &OwnedFd {
        &self.epoll
    }

    /// Has the worker look at its orders.
    pub(crate) fn wake(&self) {
        // It fails only when the counter is full, and then the worker is being woken already.
        let _already_awake = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Makes the worker sleep again after the next [`Home::wake`].
    pub(crate) fn clear_wake(&self) -> io::Result<()> {
        match rustix::io::read(&self.wake, &mut [0; 8]) {
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The sources, to serve or to change them.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Sources> {
        // A worker that panicked has ended; its sources are still whole.
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_resting(&self) -> bool {
        self.is_resting.load(Ordering::Acquire)
    }

    /// The worker's load in percent, as it told last.
    pub(crate) fn load(&self) -> u8 {
        self.load.load(Ordering::Relaxed)
    }

    pub(crate) fn set_load(&self, percent: u8) {
        self.load.store(percent, Ordering::Relaxed);
    }

    /// Watches one more source.
    pub(crate) fn open(&self, port: Option<PortIx>, source: Box<dyn Source>) -> io::Result<()> {
        let mut sources = self.lock();
        let slot = match sources.slots.iter().position(Option::is_none) {
            Some(free) => free,
            None => {
                sources.slots.push(None);
                sources.slots.len() - 1
            }
        };
        let place = Place { home: self.ix, slot };
        watch(sources.watcher(self), source.fd(), place.token())?;
        sources.slots[slot] = Some(Slot { port, source, is_bulky: false });
        Ok(())
    }

    /// Closes the sources of `port`.
    pub(crate) fn close(&self, port: Option<PortIx>) {
        let mut sources = self.lock();
        for slot in 0..sources.slots.len() {
            if sources.get(slot).is_some_and(|slot| slot.port == port) {
                sources.close(self, slot);
            }
        }
    }

    /// Closes all sources.
    pub(crate) fn close_all(&self) {
        let mut sources = self.lock();
        for slot in 0..sources.slots.len() {
            sources.close(self, slot);
        }
    }

    /// Hands the sources to `keeper`. Returns whether it was done: not while a source holds frames which it has
    /// read already, for the keeper would not know of them.
    ///
    /// # Errors
    /// When the kernel does not watch one of them there; those that it does are the keeper's all the same.
    pub(crate) fn rest(&self, keeper: &Arc<Self>) -> io::Result<bool> {
        let mut sources = self.lock();
        if sources.slots.iter().flatten().count() > RESTING_MAX
            || sources.pending().next().is_some()
        {
            return Ok(false);
        }
        sources.move_to(self, Some(Arc::clone(keeper)))?;
        self.is_resting.store(true, Ordering::Release);
        Ok(true)
    }

    /// Hands the sources back and wakes their worker.
    ///
    /// # Errors
    /// When the kernel does not watch one of them there.
    pub(crate) fn give_back(&self) -> io::Result<()> {
        self.lock().move_to(self, None)?;
        self.is_resting.store(false, Ordering::Release);
        self.wake();
        Ok(())
    }
}

impl Sources {
    /// The source in `slot`, if there is still one.
    pub(crate) fn get(&self, slot: usize) -> Option<&Slot> {
        self.slots.get(slot)?.as_ref()
    }

    /// The same, to receive from.
    pub(crate) fn get_mut(&mut self, slot: usize) -> Option<&mut Slot> {
        self.slots.get_mut(slot)?.as_mut()
    }

    /// Whether the last batch of the source in `slot` held much.
    pub(crate) fn is_bulky(&self, slot: usize) -> bool {
        self.get(slot).is_some_and(|slot| slot.is_bulky)
    }

    /// Those that hold frames which they have read already.
    pub(crate) fn pending(&self) -> impl Iterator<Item = usize> {
        let slots = self.slots.iter().enumerate();
        slots
            .filter(|(_, slot)| slot.as_ref().is_some_and(|slot| slot.source.pending()))
            .map(|(ix, _)| ix)
    }

    /// Those whose device vanished in silence, with what the kernel said.
    pub(crate) fn vanished(&self) -> Vec<(usize, io::Error)> {
        let slots = self.slots.iter().enumerate();
        slots.filter_map(|(ix, slot)| Some((ix, slot.as_ref()?.source.check().err()?))).collect()
    }

    /// Closes the source in `slot`; returns whose it was.
    pub(crate) fn close(&mut self, home: &Home, slot: usize) -> Option<PortIx> {
        let slot = self.slots.get_mut(slot)?.take()?;
        // Sinks of other workers may hold the descriptor open, so closing it here is not enough. It fails
        // only for a descriptor that is not watched, which is what is wanted.
        let _unwatched_anyhow = epoll::delete(self.watcher(home), slot.source.fd());
        slot.port
    }

    fn watcher<'a>(&'a self, home: &'a Home) -> &'a OwnedFd {
        self.keeper.as_ref().map_or(&home.epoll, |keeper| &keeper.epoll)
    }

    fn move_to(&mut self, home: &Home, keeper: Option<Arc<Home>>) -> io::Result<()> {
        let to = keeper.as_ref().map_or(&home.epoll, |keeper| &keeper.epoll);
        for (ix, slot) in self.slots.iter().enumerate() {
            let Some(slot) = slot else { continue };
            let _unwatched_anyhow = epoll::delete(self.watcher(home), slot.source.fd());
            watch(to, slot.source.fd(), Place { home: home.ix, slot: ix }.token())?;
        }
        self.keeper = keeper;
        Ok(())
    }
}

fn watch(epoll: &OwnedFd, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
    Ok(epoll::add(epoll, fd, EventData::new_u64(token), EventFlags::IN)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::frame::Batch;
    use crate::port::Context;

    /// Holds frames or not, as it is told.
    #[derive(Debug)]
    struct HoldingSource(UnixDatagram, Arc<AtomicBool>);

    impl Source for HoldingSource {
        fn fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }

        fn receive(&mut self, _context: &mut Context<'_>, _batch: &mut Batch) -> io::Result<()> {
            Ok(())
        }

        fn pending(&self) -> bool {
            self.1.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn sources_that_hold_frames_are_not_handed_over() {
        let [keeper, home] = [0, 1].map(|ix| Arc::new(Home::new(ix).unwrap()));
        let (socket, _outer) = UnixDatagram::pair().unwrap();
        let holds = Arc::new(AtomicBool::new(true));
        home.open(None, Box::new(HoldingSource(socket, Arc::clone(&holds)))).unwrap();
        assert!(!home.rest(&keeper).unwrap());
        assert!(!home.is_resting());
        holds.store(false, Ordering::Relaxed);
        assert!(home.rest(&keeper).unwrap());
        assert!(home.is_resting());
    }
}
