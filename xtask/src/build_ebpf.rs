//! `cargo xtask build-ebpf`: compiles `dataplane-ebpf` with whichever toolchain can.
//!
//! Besides the programs of a node it builds those of the benchmark, each into an object of its own.

use std::{
    env, fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};

const TARGET: &str = "bpfel-unknown-none";
/// The programs of a node; the others are the benchmark's.
const NODE: &str = "swarmnet";
const OBJECTS: [&str; 3] = [NODE, "bench-driver", "bench-plain"];
/// What the object is made from; this file holds the flags.
const INPUTS: [&str; 6] = [
    "dataplane-ebpf/Cargo.toml",
    "dataplane-ebpf/Cargo.lock",
    "dataplane-ebpf/src",
    "dataplane-abi/Cargo.toml",
    "dataplane-abi/src",
    "xtask/src/build_ebpf.rs",
];
/// v3 has 32-bit jumps and atomics that return; Linux 5.12 and later run it. BTF gives the
/// verifier's log and `bpftool` the source lines.
const RUSTFLAGS: [&str; 3] = ["-Ctarget-cpu=v3", "-Cdebuginfo=2", "-Clink-arg=--btf"];

const NO_TOOLCHAIN: &str = "no Rust compiler here can build for bpfel-unknown-none: on Debian run \
    `apt-get install --no-install-recommends rustc-web libstd-rust-web-dev-bpf llvm-22-dev`, \
    elsewhere `rustup toolchain install nightly --component rust-src`";
const NO_LINKER: &str = "`bpf-linker` does not run: install it with `LLVM_PREFIX=/usr/lib/llvm-22 \
    cargo install bpf-linker --no-default-features --features llvm-22 --locked` (beside Debian's \
    rustc-web and llvm-22-dev), elsewhere with `cargo install bpf-linker --locked`";

#[derive(clap::Args, Default)]
pub struct Args {
    /// Build even when the object is up to date.
    #[arg(long)]
    pub force: bool,
    /// Build the programs with another map layout, for tests of upgrades.
    #[arg(long)]
    pub another_layout: bool,
}

const ANOTHER_LAYOUT: &str = "another-layout";

pub fn run(args: &Args) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask lies in the workspace")?;
    // Each with the name of its file.
    let objects = if args.another_layout {
        vec![(NODE, ANOTHER_LAYOUT)]
    } else {
        OBJECTS.map(|name| (name, name)).to_vec()
    };
    let file = |name: &str| root.join("target/bpf").join(name).with_extension("o");
    let object = file(objects[0].1);
    let stamp = object.with_extension("inputs");

    let digest = format!("{:016x}", digest_of_inputs(root)?);
    let fresh = objects.iter().all(|(_, name)| file(name).exists())
        && fs::read_to_string(&stamp).is_ok_and(|was| was == digest);
    if fresh && !args.force {
        println!("{} is up to date", object.display());
        return Ok(());
    }

    let toolchain = Toolchain::find().context(NO_TOOLCHAIN)?;
    ensure!(
        succeeds(Command::new("bpf-linker").arg("--version")),
        NO_LINKER
    );
    println!("building the eBPF programs with {}", toolchain.describe());
    let started = Instant::now();
    let package = root.join("dataplane-ebpf");
    let mut target_dir = package.join("target");
    let mut features = Vec::new();
    if args.another_layout {
        target_dir.push(ANOTHER_LAYOUT);
        features = vec!["--features", ANOTHER_LAYOUT, "--bin", NODE];
    }
    toolchain.build(&package, &target_dir, &features)?;

    let built = target_dir.join(TARGET).join("release");
    let mut size = 0;
    for (name, to) in objects {
        let len = install(&built.join(name), &file(to))?;
        if name == NODE {
            size = len;
        }
    }
    fs::write(&stamp, digest).with_context(|| format!("cannot write {}", stamp.display()))?;
    println!(
        "{}: {} KiB, {:.1} s",
        object.display(),
        size / 1024,
        started.elapsed().as_secs_f32()
    );
    Ok(())
}

/// A way to compile for the BPF target.
enum Toolchain {
    /// A compiler that comes with `core` for the target, as Debian's does.
    Prebuilt { rustc: PathBuf, version: String },
    /// A nightly of rustup with the component rust-src: cargo compiles `core` itself.
    BuildStd { version: String },
}

impl Toolchain {
    fn find() -> Option<Self> {
        let prebuilt = ["/usr/bin/rustc", "rustc"].into_iter().find_map(|rustc| {
            let libdir = output_of(Command::new(rustc).args([
                "--print",
                "target-libdir",
                "--target",
                TARGET,
            ]))?;
            has_core(Path::new(&libdir)).then(|| Self::Prebuilt {
                rustc: rustc.into(),
                version: output_of(Command::new(rustc).arg("--version")).unwrap_or_default(),
            })
        });
        prebuilt.or_else(|| {
            let nightly = |args: &[&str]| {
                output_of(
                    Command::new("rustup")
                        .args(["run", "nightly", "rustc"])
                        .args(args),
                )
            };
            let sysroot = nightly(&["--print", "sysroot"])?;
            let core = Path::new(&sysroot).join("lib/rustlib/src/rust/library/core/src/lib.rs");
            let version = nightly(&["--version"])?;
            core.exists().then_some(Self::BuildStd { version })
        })
    }

    fn describe(&self) -> String {
        match self {
            Self::Prebuilt { rustc, version } => {
                format!(
                    "{} ({version}), which has core for {TARGET}",
                    rustc.display()
                )
            }
            Self::BuildStd { version } => {
                format!("rustup's nightly ({version}) and -Z build-std=core")
            }
        }
    }

    fn build(&self, package: &Path, target_dir: &Path, features: &[&str]) -> Result<()> {
        let mut cargo = match self {
            Self::Prebuilt { rustc, .. } => {
                let mut cargo = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
                // aya-ebpf uses unstable features of the language.
                cargo
                    .env("RUSTC", rustc)
                    .env("RUSTC_BOOTSTRAP", "1")
                    .arg("build");
                cargo
            }
            Self::BuildStd { .. } => {
                let mut cargo = Command::new("rustup");
                cargo.args(["run", "nightly", "cargo", "build", "-Zbuild-std=core"]);
                cargo
                    .env_remove("RUSTC")
                    .env_remove("CARGO")
                    .env_remove("RUSTUP_TOOLCHAIN");
                cargo
            }
        };
        // Flags meant for the host's build, and wrappers of its compiler, are not for this target.
        for host_only in [
            "RUSTFLAGS",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "CARGO_TARGET_DIR",
        ] {
            cargo.env_remove(host_only);
        }
        let status = cargo
            .args(["--release", "--locked", "--target", TARGET])
            .arg("--target-dir")
            .arg(target_dir)
            .args(features)
            .env("CARGO_ENCODED_RUSTFLAGS", RUSTFLAGS.join("\x1f"))
            .current_dir(package)
            .status()
            .context("cannot run cargo")?;
        if !status.success() {
            bail!("the eBPF programs do not build ({status}); the compiler's messages are above");
        }
        Ok(())
    }
}

/// Copies the object when its bytes changed, so that crates which embed it are not rebuilt for
/// nothing, and at once, so that none of them reads half of it. Returns its size.
fn install(built: &Path, object: &Path) -> Result<usize> {
    let bytes = fs::read(built).with_context(|| format!("cannot read {}", built.display()))?;
    if fs::read(object).is_ok_and(|old| old == bytes) {
        return Ok(bytes.len());
    }
    let dir = object.parent().context("the object has a folder")?;
    let temporary = object.with_extension("tmp");
    fs::create_dir_all(dir)
        .and_then(|()| fs::write(&temporary, &bytes))
        .and_then(|()| fs::rename(&temporary, object))
        .with_context(|| format!("cannot write {}", object.display()))?;
    Ok(bytes.len())
}

fn digest_of_inputs(root: &Path) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    for input in INPUTS {
        for file in files_below(&root.join(input))? {
            file.hash(&mut hasher);
            let bytes =
                fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            bytes.hash(&mut hasher);
        }
    }
    Ok(hasher.finish())
}

/// The file itself, or all files of a folder, sorted.
fn files_below(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let entries = fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))?;
    let mut entries = entries
        .map(|entry| entry.map(|e| e.path()))
        .collect::<std::io::Result<Vec<_>>>()?;
    entries.sort();
    let mut files = Vec::new();
    for entry in entries {
        files.extend(files_below(&entry)?);
    }
    Ok(files)
}

fn has_core(libdir: &Path) -> bool {
    fs::read_dir(libdir).is_ok_and(|entries| {
        entries
            .flatten()
            .any(|e| e.file_name().to_string_lossy().starts_with("libcore-"))
    })
}

fn output_of(command: &mut Command) -> Option<String> {
    let output = command.stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

fn succeeds(command: &mut Command) -> bool {
    command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}
