//! `cargo xtask test --vm VERSION`: tests under another kernel, in an emulated machine (QEMU
//! without KVM, so that it runs wherever CI does).
//!
//! The machine has no disk: everything is in its initramfs, with the test binaries at the paths
//! that they have here. Its first process runs them one after the other and says so on a serial
//! line; the kernel's own messages go to another, `target/vm/VERSION/console.log`.

mod image;
mod kernel;
mod machine;
mod suite;

use std::{
    path::PathBuf,
    thread::{self, ScopedJoinHandle},
};

use anyhow::{Result, ensure};
use lab::progress::step;

use self::machine::Machine;
use crate::{
    build::{Profile, build, root},
    setup,
};

/// Kernels that Debian packages and that we test: the oldest we support, and a stable one with tcx.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Version {
    #[value(name = "6.1")]
    V6_1,
    #[value(name = "6.12")]
    V6_12,
}

impl Version {
    const fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }

    /// Kernel, image and log of this version.
    fn dir(self) -> PathBuf {
        root().join("target/vm").join(self.name())
    }
}

/// Boots the kernels, all at once, and runs the suite, or its smoke tests, in each. Words of
/// `filter` are names of tests, as for `cargo test`.
///
/// # Errors
/// What is missing, or which tests failed.
pub fn run(versions: &[Version], smoke: bool, filter: &[String]) -> Result<()> {
    setup::ensure_ready(setup::For::Machine)?;
    let binaries = build(Profile::Dev)?;
    let runs = suite::build(smoke, filter)?;
    let machines = versions
        .iter()
        .map(|&version| {
            let kernel = kernel::ensure(version)?;
            let initramfs = step(
                &format!("packing the machine of kernel {}", kernel.release),
                || image::pack(version, &kernel, &binaries, &runs),
            )?;
            let prefix = match versions {
                [_] => String::new(),
                _ => format!("{}: ", version.name()),
            };
            Ok(Machine::new(version, kernel, initramfs, prefix))
        })
        .collect::<Result<Vec<_>>>()?;
    let outcomes: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> = machines
            .iter()
            .map(|machine| scope.spawn(|| machine.run()))
            .collect();
        let joined = running.into_iter().map(ScopedJoinHandle::join);
        joined.map(|it| it.expect("no panic")).collect()
    });
    for (machine, (total, _)) in machines.iter().zip(&outcomes) {
        println!("kernel {}: {total}", machine.release());
    }
    let mut wrong = Vec::new();
    for (total, outcome) in outcomes {
        match outcome {
            Err(error) => wrong.push(format!("{error:#}")),
            Ok(()) if total.ran() == 0 => wrong.push("no test has such a name".to_owned()),
            Ok(()) => {}
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(())
}
