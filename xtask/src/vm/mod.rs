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

use std::path::PathBuf;

use anyhow::{Result, ensure};
use lab::progress::step;

use crate::{
    build::{Profile, build, root},
    follow::Total,
    setup,
};

/// Kernels that Debian packages and that we test: the oldest we support, and a stable one with tcx.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
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

/// Boots the kernel and runs the suite, or its smoke tests, in it. Words of `filter` are names of
/// tests, as for `cargo test`.
///
/// # Errors
/// What is missing, or which tests failed.
pub fn run(version: Version, smoke: bool, filter: &[String]) -> Result<()> {
    setup::ensure_ready(setup::For::Machine)?;
    let kernel = kernel::ensure(version)?;
    let binaries = build(Profile::Dev)?;
    let runs = suite::build(smoke, filter)?;
    let initramfs = step(
        &format!("packing the machine of kernel {}", kernel.release),
        || image::pack(version, &kernel, &binaries, &runs),
    )?;
    let mut total = Total::default();
    let outcome = machine::boot(version, &kernel, &initramfs, &mut total);
    println!("\nkernel {}: {total}", kernel.release);
    let failed = outcome?;
    ensure!(
        failed.is_empty(),
        "failed under kernel {}: {}; see above",
        kernel.release,
        failed.join(", ")
    );
    ensure!(total.ran() > 0, "no test has such a name");
    Ok(())
}
