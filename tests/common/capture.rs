//! Captures by tcpdump, judged by tshark: two programs that know nothing of Weft.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use weft::lab::{Lab, Namespace, UNDERLAY};

use super::{find, has_programs, skip};

/// Whether tcpdump works here. It changes its user as soon as it has opened the device, which a user
/// namespace of an ordinary user forbids (user_namespaces(7)); only root can have it.
pub(crate) fn is_permitted() -> bool {
    let setgroups = fs::read_to_string("/proc/self/setgroups").unwrap();
    let permitted = setgroups.trim() == "allow";
    if !permitted {
        skip("WEFT_REQUIRE_INTEROP", "tcpdump needs root");
    }
    permitted
}

/// A running capture of what leaves through one device.
pub(crate) struct Capture {
    tcpdump: Child,
    messages: BufReader<ChildStderr>,
    path: PathBuf,
}

impl Capture {
    /// Starts capturing frames that leave through `device`, into a file at `path`. Frames longer than
    /// `frame_len_max` are cut; their length is kept.
    #[track_caller]
    pub(crate) fn start(
        namespace: &Namespace,
        device: &str,
        path: PathBuf,
        frame_len_max: u32,
    ) -> Self {
        let mut command = Command::new(find("tcpdump").unwrap());
        // 64 MiB of buffers, in which nothing waits: what was sent before the end is in the file. Without
        // waiting, each frame takes a buffer of the longest frame's length.
        command.args([
            "-i",
            device,
            "-Q",
            "out",
            "-B",
            "65536",
            "--immediate-mode",
            "-n",
            "-w",
            "-",
        ]);
        command.args(["-s", &frame_len_max.to_string()]);
        command.stdout(File::create(&path).unwrap()).stderr(Stdio::piped());
        namespace.start_inside(&mut command, true).unwrap();
        let mut tcpdump = command.spawn().unwrap();
        let mut messages = BufReader::new(tcpdump.stderr.take().unwrap());
        let mut text = String::new();
        while !text.contains("listening on") {
            assert!(messages.read_line(&mut text).unwrap() > 0, "tcpdump does not start: {text}");
        }
        Self { tcpdump, messages, path }
    }

    /// Ends it, and gives the file's path. Fails if a frame was missed.
    #[track_caller]
    pub(crate) fn finish(mut self) -> PathBuf {
        let pid = Pid::from_raw(i32::try_from(self.tcpdump.id()).unwrap()).unwrap();
        kill_process(pid, Signal::INT).unwrap();
        assert!(self.tcpdump.wait().unwrap().success());
        let mut report = String::new();
        self.messages.read_to_string(&mut report).unwrap();
        assert!(report.contains("\n0 packets dropped by kernel"), "{report}");
        self.path
    }
}

/// Whether, of the TCP segments that `device` hands on while `traffic` flows, any lacks its checksum, and
/// whether any is longer than a packet: what an offloading sender leaves for others to do. `None` where
/// tcpdump and tshark cannot be used.
#[track_caller]
pub(crate) fn left_undone(lab: &Lab, device: &str, traffic: impl FnOnce()) -> Option<(bool, bool)> {
    let usable = has_programs(&[("tcpdump", "tcpdump"), ("tshark", "tshark")]) && is_permitted();
    let capture = usable.then(|| {
        let path = lab.dir().join("left-undone.pcap");
        Capture::start(&lab.namespace(UNDERLAY).unwrap(), device, path, SUPER_FRAME_LEN_MAX)
    });
    traffic();
    let rows = read(&capture?.finish(), &["tcp.checksum.status", "frame.len"]);
    let mut segments = rows.iter().filter(|row| !row[0].is_empty());
    assert!(segments.clone().count() > 10, "no TCP was captured");
    let frame_len_max = u32::from(lab.state().config.underlay_mtu) + 14;
    let lacks_checksum = segments.clone().any(|row| row[0] == BAD);
    let is_long = segments.any(|row| row[1].parse::<u32>().unwrap() > frame_len_max);
    Some((lacks_checksum, is_long))
}

/// How tshark writes the state of a checksum (Wireshark, epan/proto.h).
pub(crate) const BAD: &str = "0";
pub(crate) const GOOD: &str = "1";

/// Longest IP packet that the kernel makes without BIG TCP, and room for what is around it.
const SUPER_FRAME_LEN_MAX: u32 = 65_536 + 200;

/// Writes frames as if they had been captured.
pub(crate) fn write(path: &Path, frames: &[Vec<u8>]) {
    // https://www.tcpdump.org/manpages/pcap-savefile.5.html: magic number, version 2.4 as two halves,
    // nothing, nothing, longest frame, Ethernet; then per frame seconds, microseconds, and its length twice.
    let [major, minor] = [2_u16, 4].map(u16::to_ne_bytes);
    let version = u32::from_ne_bytes([major[0], major[1], minor[0], minor[1]]);
    let mut file: Vec<u8> = Vec::new();
    let mut put = |words: &[u32], rest: &[u8]| {
        file.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        file.extend(rest);
    };
    put(&[0xa1b2_c3d4, version, 0, 0, SUPER_FRAME_LEN_MAX, 1], &[]);
    for frame in frames {
        let len = u32::try_from(frame.len()).unwrap();
        put(&[0, 0, len, len], frame);
    }
    fs::write(path, file).unwrap();
}

/// Flips the last bit of the first frame that is longer than `len`.
#[track_caller]
pub(crate) fn flip_last_bit(capture: &Path, len: usize) {
    // https://www.tcpdump.org/manpages/pcap-savefile.5.html: a header of 24 bytes; each frame has one of
    // 16 bytes, in which its captured length is the third word.
    let mut bytes = fs::read(capture).unwrap();
    let mut end = 24;
    loop {
        let word: [u8; 4] = bytes[end + 8..end + 12].try_into().unwrap();
        let frame_len = usize::try_from(u32::from_ne_bytes(word)).unwrap();
        end += 16 + frame_len;
        if frame_len > len {
            break;
        }
    }
    bytes[end - 1] ^= 1;
    fs::write(capture, bytes).unwrap();
}

/// Reads a capture with tshark: one row per frame, one text per field, with `,` between the values of a
/// field that is there several times (outer before inner). All checksums are verified.
///
/// Linux writes a TCP checksum of zero as 0xffff (`CSUM_MANGLED_0` in `skb_checksum_help`), which every
/// receiver takes: both are zero in ones' complement. tshark calls it bad (RFC 1624); here it is good.
#[track_caller]
pub(crate) fn read(capture: &Path, fields: &[&str]) -> Vec<Vec<String>> {
    let mut command = Command::new(find("tshark").unwrap());
    command.arg("-r").arg(capture).args(["-n", "-T", "fields", "-E", "occurrence=a"]);
    for preference in
        ["ip.check_checksum:TRUE", "udp.check_checksum:TRUE", "tcp.check_checksum:TRUE"]
    {
        command.args(["-o", preference]);
    }
    command.args(["-d", "udp.port==4789,vxlan"]);
    let zero = ["tcp.checksum", "tcp.checksum_calculated"];
    for field in fields.iter().chain(&zero) {
        command.args(["-e", field]);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "tshark: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let status = fields.iter().position(|field| *field == "tcp.checksum.status");
    let rows = text.lines().map(|line| {
        let mut row: Vec<_> = line.split('\t').map(str::to_owned).collect();
        let zero = row.split_off(fields.len());
        if let (Some(status), true) = (status, zero == ["0xffff", "0x0000"]) {
            row[status] = GOOD.to_owned();
        }
        row
    });
    rows.collect()
}
