//! The driver program: runs of it, and what they took.

use std::path::Path;

use anyhow::{Context, Result, bail};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, PerCpuArray, ProgramArray},
    programs::{ProgramFd, TestRun, TestRunAttrs, TestRunOptions, Xdp, XdpMode},
};
use dataplane_abi::bench::Drive;
use nix::time::{ClockId, clock_gettime};

use super::packet;

/// Live frames that the kernel sends at once.
const LIVE_BATCH: u32 = 64;

/// A program that the driver can call.
pub struct Subject {
    pub program: ProgramFd,
    /// Whether it is loaded as one that knows fragmented buffers: tail calls go between likes.
    pub frags: bool,
}

/// What one run of many packets said.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// Nanoseconds a packet.
    pub ns: f64,
    /// The last packet's.
    pub verdict: u32,
    /// Packets that came out longer.
    pub wrapped: u64,
}

/// The driver's own costs, as programs that do nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nop {
    Tx,
    Pass,
    /// Makes room at the head, too.
    Wrap,
}

pub struct Driver {
    object: Ebpf,
    /// Where packets come in.
    ifindex: u32,
}

impl Driver {
    /// # Errors
    /// When the object is missing or the kernel refuses it.
    pub fn load(object: &Path, ifindex: u32) -> Result<Self> {
        let mut object = EbpfLoader::new()
            .btf(None)
            .load_file(object)
            .with_context(|| {
                format!(
                    "cannot load {}; `cargo xtask build-ebpf` makes it",
                    object.display()
                )
            })?;
        for (name, program) in object.programs_mut() {
            let program: &mut Xdp = program.try_into()?;
            program.load().with_context(|| format!("program {name}"))?;
        }
        Ok(Self { object, ifindex })
    }

    /// The program of the driver's object that does nothing but this.
    ///
    /// # Errors
    /// When it is not in the object.
    pub fn nop(&mut self, nop: Nop, frags: bool) -> Result<Subject> {
        let name = match nop {
            Nop::Tx => "nop_tx",
            Nop::Pass => "nop_pass",
            Nop::Wrap => "nop_wrap",
        };
        let name = if frags {
            format!("{name}_frags")
        } else {
            name.to_owned()
        };
        let program: &mut Xdp = self.object.program_mut(&name).context(name)?.try_into()?;
        Ok(Subject {
            program: program.fd()?.try_clone()?,
            frags,
        })
    }

    /// Sends `repeat` packets through the subject, and counts on in `drive`.
    ///
    /// # Errors
    /// When the kernel refuses, or the driver could not do its part.
    pub fn run(&mut self, subject: &Subject, drive: &mut Drive, repeat: u32) -> Result<Run> {
        self.run_out(subject, drive, repeat, None)
    }

    /// Sends one packet; gives it as it was sent, the verdict, and the packet as it came out.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn one(&mut self, subject: &Subject, drive: &mut Drive) -> Result<(Vec<u8>, Run, Vec<u8>)> {
        let sent = packet::packet(drive, drive.sent);
        let mut out = vec![0; sent.len() + 256];
        let run = self.run_out(subject, drive, 1, Some(&mut out))?;
        Ok((sent, run, out))
    }

    /// Puts a program of the driver's object on a device, for as long as the driver lives.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach(&mut self, name: &str, device: &str) -> Result<()> {
        let program: &mut Xdp = self
            .object
            .program_mut(name)
            .context("no program")?
            .try_into()?;
        program
            .attach(device, XdpMode::Driver)
            .with_context(|| format!("{name} on {device}"))?;
        Ok(())
    }

    /// Packets that `sink` has taken so far.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn sunk(&self) -> Result<u64> {
        let map = PerCpuArray::<_, u64>::try_from(self.object.map("SUNK").context("SUNK")?)?;
        Ok(map.get(&0, 0)?.iter().sum())
    }

    /// Sends copies of a frame out of a device.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn send_live(&mut self, device: &str, frame: &[u8], count: u32) -> Result<()> {
        let ifindex = nix::net::if_::if_nametoindex(device)?;
        let context = context(frame.len() as u32, ifindex);
        let program: &mut Xdp = self
            .object
            .program_mut("nop_tx")
            .context("no program")?
            .try_into()?;
        program
            .test_run(TestRunOptions {
                data_in: Some(frame),
                ctx_in: Some(&context),
                repeat: count,
                attrs: TestRunAttrs::new().xdp_live_frames(LIVE_BATCH),
                ..TestRunOptions::default()
            })
            .context("a run with live frames")?;
        Ok(())
    }

    fn run_out(
        &mut self,
        subject: &Subject,
        drive: &mut Drive,
        repeat: u32,
        out: Option<&mut Vec<u8>>,
    ) -> Result<Run> {
        let (entry, array) = if subject.frags {
            ("drive_frags", "PROGRAM_FRAGS")
        } else {
            ("drive", "PROGRAM")
        };
        let map = self.object.map_mut(array).context(array)?;
        ProgramArray::try_from(map)?.set(0, &subject.program, 0)?;
        let before = *drive;
        self.orders()?.set(0, before, 0)?;

        let packet = packet::packet(drive, drive.sent);
        let context = context(drive.len, self.ifindex);
        let program: &mut Xdp = self.object.program_mut(entry).context(entry)?.try_into()?;
        let mut buffer = out;
        let started = thread_time()?;
        let result = program
            .test_run(TestRunOptions {
                data_in: Some(&packet),
                data_out: buffer.as_deref_mut().map(Vec::as_mut_slice),
                ctx_in: Some(&context),
                repeat,
                ..TestRunOptions::default()
            })
            .context("the test run")?;
        let took = thread_time()? - started;
        *drive = self.orders()?.get(&0, 0)?;
        let sent = drive.sent - before.sent;
        if sent != u64::from(repeat) || result.return_value == 0 {
            bail!("the driver sent {sent} packets of {repeat}: it cannot call the program");
        }
        if let Some(out) = buffer {
            out.truncate(result.data_size_out as usize);
        }
        let last = u64::from(result.data_size_out > drive.len);
        Ok(Run {
            ns: took * 1e9 / f64::from(repeat),
            verdict: result.return_value,
            wrapped: drive.grown - before.grown + last,
        })
    }

    fn orders(&mut self) -> Result<Array<&mut aya::maps::MapData, Drive>> {
        Ok(Array::try_from(
            self.object.map_mut("DRIVE").context("DRIVE")?,
        )?)
    }
}

/// `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
fn context(len: u32, ifindex: u32) -> Vec<u8> {
    let words = [0, len, 0, ifindex, 0, 0];
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Seconds of CPU time of this thread.
fn thread_time() -> Result<f64> {
    let now = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    Ok(now.tv_sec() as f64 + now.tv_nsec() as f64 / 1e9)
}
