//! Where a task's root filesystem comes from.
//!
//! `host` is the node's own. Any other image is, in the images directory, a directory
//! `<name>` that is the root filesystem, or an archive `<name>.tar`: of a root filesystem
//! (`docker export`), or of an image (`docker save`).

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, BufReader, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
};

use flate2::read::GzDecoder;
use serde::{Deserialize, Serialize};
use tar::Archive;

use crate::{error::ExecError, task_dir::Root};

/// The image name that stands for the node's own root filesystem.
const HOST: &str = "host";

/// A root filesystem and what the image says of running it.
#[derive(Debug)]
pub(crate) struct Image {
    pub root: Root,
    pub config: ImageConfig,
}

/// The part of an image's configuration that we follow; named as in the OCI image spec.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct ImageConfig {
    #[serde(deserialize_with = "null_is_empty")]
    pub env: Vec<String>,
    #[serde(deserialize_with = "null_is_empty")]
    pub entrypoint: Vec<String>,
    #[serde(deserialize_with = "null_is_empty")]
    pub cmd: Vec<String>,
    pub working_dir: String,
    pub user: String,
}

fn null_is_empty<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// Finds an image and unpacks it if that has not been done. Blocks on the disk.
///
/// # Errors
/// `NoSuchImage`, or `BadImage` when the archive cannot be unpacked.
pub(crate) fn resolve(images: &Path, unpacked: &Path, reference: &str) -> Result<Image, ExecError> {
    let missing = || ExecError::NoSuchImage(reference.to_owned());
    let names = names(reference);
    if names.last().is_some_and(|name| name == HOST) {
        return Ok(Image {
            root: Root::Host,
            config: ImageConfig::default(),
        });
    }
    for name in names {
        // The name comes from a user and must not lead out of the directory.
        let mut parts = Path::new(&name).components();
        if name.is_empty() || !parts.all(|part| matches!(part, Component::Normal(_))) {
            return Err(missing());
        }
        let dir = images.join(&name);
        if dir.is_dir() {
            return Ok(Image {
                root: Root::Image(dir),
                config: ImageConfig::default(),
            });
        }
        let archive = images.join(format!("{name}.tar"));
        if archive.is_file() {
            return unpack_once(&archive, &name, unpacked).map_err(|err| ExecError::BadImage {
                image: reference.to_owned(),
                reason: err.to_string(),
            });
        }
    }
    Err(missing())
}

/// Names to look for: as written, without the digest, and without the tag.
fn names(reference: &str) -> Vec<String> {
    let (tagged, _digest) = reference.split_once('@').unwrap_or((reference, ""));
    let mut names = vec![tagged.to_owned()];
    // A colon before a slash belongs to a registry's port.
    if let Some((name, tag)) = tagged.rsplit_once(':')
        && !tag.contains('/')
    {
        names.push(name.to_owned());
    }
    names
}

/// Unpacks an archive beside earlier ones; one that was changed since is unpacked anew, so that
/// tasks which run from the old files keep them.
fn unpack_once(archive: &Path, name: &str, unpacked: &Path) -> io::Result<Image> {
    let meta = fs::metadata(archive)?;
    let version = format!(
        "{:x}.{:x}.{:x}",
        meta.len(),
        meta.mtime(),
        meta.mtime_nsec()
    );
    let target = unpacked.join(format!("{}-{version}", name.replace('/', "_")));
    if !target.exists() {
        let partial = unpacked.join(format!(".{}", std::process::id()));
        remove_tree(&partial)?;
        fs::create_dir_all(partial.join("root"))?;
        let config = unpack(archive, &partial)?;
        fs::write(partial.join("config.json"), serde_json::to_vec(&config)?)?;
        fs::rename(&partial, &target)?;
    }
    let config = serde_json::from_slice(&fs::read(target.join("config.json"))?)?;
    Ok(Image {
        root: Root::Image(target.join("root")),
        config,
    })
}

/// Removes a directory with all it holds; a missing one is no error.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// An entry of `manifest.json` in what `docker save` writes.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Manifest {
    config: String,
    layers: Vec<String>,
}

#[derive(Deserialize)]
struct ConfigFile {
    #[serde(default)]
    config: ImageConfig,
}

/// Unpacks into `<partial>/root`.
fn unpack(archive: &Path, partial: &Path) -> io::Result<ImageConfig> {
    let root = partial.join("root");
    let Some(manifest) = find_file(archive, "manifest.json")? else {
        unpack_layer(archive, &root)?;
        return Ok(ImageConfig::default());
    };
    let images: Vec<Manifest> = serde_json::from_slice(&manifest)?;
    let image = images
        .into_iter()
        .next()
        .ok_or_else(|| io::Error::other("manifest.json lists no image"))?;
    let blobs = extract(archive, &image, partial)?;
    let blob = |name: &str| {
        let path = blobs.get(Path::new(name));
        path.ok_or_else(|| io::Error::other(format!("the archive lacks {name}")))
    };
    for layer in &image.layers {
        unpack_layer(blob(layer)?, &root)?;
    }
    let config: ConfigFile = serde_json::from_slice(&fs::read(blob(&image.config)?)?)?;
    remove_tree(&partial.join("blobs"))?;
    Ok(config.config)
}

/// Opens an archive, compressed or not.
fn open(path: &Path) -> io::Result<Archive<Box<dyn Read>>> {
    let mut file = File::open(path)?;
    let mut magic = [0; 2];
    let read = file.read(&mut magic)?;
    file.seek(SeekFrom::Start(0))?;
    let file = BufReader::with_capacity(1 << 20, file);
    let gzip = read == 2 && magic == [0x1f, 0x8b];
    let reader: Box<dyn Read> = if gzip {
        Box::new(GzDecoder::new(file))
    } else {
        Box::new(file)
    };
    Ok(Archive::new(reader))
}

/// The contents of one file at the top of an archive.
fn find_file(archive: &Path, name: &str) -> io::Result<Option<Vec<u8>>> {
    for entry in open(archive)?.entries()? {
        let mut entry = entry?;
        if entry.path()?.as_ref() == Path::new(name) {
            let mut contents = Vec::new();
            entry.read_to_end(&mut contents)?;
            return Ok(Some(contents));
        }
    }
    Ok(None)
}

/// Copies the layers and the configuration of an image to files, by their names in the archive.
fn extract(
    archive: &Path,
    image: &Manifest,
    partial: &Path,
) -> io::Result<HashMap<PathBuf, PathBuf>> {
    let dir = partial.join("blobs");
    fs::create_dir(&dir)?;
    let mut blobs = HashMap::new();
    for entry in open(archive)?.entries()? {
        let mut entry = entry?;
        let name = entry.path()?.into_owned();
        let wanted = image.layers.iter().chain([&image.config]);
        if wanted.into_iter().any(|wanted| Path::new(wanted) == name) {
            let path = dir.join(blobs.len().to_string());
            io::copy(&mut entry, &mut File::create(&path)?)?;
            blobs.insert(name, path);
        }
    }
    Ok(blobs)
}

/// Marks, in a layer, what it takes away from those below (OCI image spec, "Whiteouts").
const WHITEOUT: &str = ".wh.";
const WHITEOUT_OPAQUE: &str = ".wh..wh..opq";

/// Applies one layer: first what it removes, then what it holds.
fn unpack_layer(layer: &Path, root: &Path) -> io::Result<()> {
    for entry in open(layer)?.entries()? {
        apply_whiteout(entry?.path()?.as_ref(), root)?;
    }
    let mut archive = open(layer)?;
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(true);
    archive.set_overwrite(true);
    for entry in archive.entries()? {
        let mut entry = entry?;
        if whiteout_of(&entry.path()?).is_none() {
            entry.unpack_in(root)?;
        }
    }
    Ok(())
}

fn whiteout_of(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()?.strip_prefix(WHITEOUT)
}

fn apply_whiteout(path: &Path, root: &Path) -> io::Result<()> {
    let (Some(name), Some(parent)) = (whiteout_of(path), path.parent()) else {
        return Ok(());
    };
    let Ok(parent) = root.join(parent).canonicalize() else {
        return Ok(()); // nothing below it to take away
    };
    if !parent.starts_with(root.canonicalize()?) {
        return Err(io::Error::other(format!(
            "{} leads out of the image",
            path.display()
        )));
    }
    let doomed: Vec<PathBuf> = if path.ends_with(WHITEOUT_OPAQUE) {
        let entries: io::Result<Vec<_>> = fs::read_dir(&parent)?.collect();
        entries?.iter().map(fs::DirEntry::path).collect()
    } else {
        vec![parent.join(name)]
    };
    for path in doomed {
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() => fs::remove_dir_all(&path)?,
            Ok(_) => fs::remove_file(&path)?,
            Err(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_looked_for_as_written_then_without_its_tag() {
        assert_eq!(names("web"), ["web"]);
        assert_eq!(names("web:1.2@sha256:00"), ["web:1.2", "web"]);
        assert_eq!(names("reg:5000/web"), ["reg:5000/web"]);
        assert_eq!(names("reg:5000/web:1"), ["reg:5000/web:1", "reg:5000/web"]);
    }

    fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, contents) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(contents.len() as u64);
            header.set_mode(0o755);
            header.set_uid(nix::unistd::getuid().as_raw().into());
            header.set_gid(nix::unistd::getgid().as_raw().into());
            builder.append_data(&mut header, name, *contents).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn a_missing_image_and_one_outside_the_directory_are_not_there() {
        let dir = tempfile::tempdir().unwrap();
        for reference in ["nginx:latest", "../etc", "/etc", ""] {
            let found = resolve(dir.path(), dir.path(), reference);
            let text = found.unwrap_err().to_string();
            assert_eq!(text, format!("No such image: {reference}"));
        }
    }

    #[test]
    fn a_root_archive_is_unpacked_once_and_anew_when_changed() {
        let dir = tempfile::tempdir().unwrap();
        let unpacked = dir.path().join("unpacked");
        let root = |contents: &[u8]| {
            fs::write(
                dir.path().join("app.tar"),
                tar_of(&[("etc/name", contents)]),
            )
            .unwrap();
            match resolve(dir.path(), &unpacked, "app:latest").unwrap().root {
                Root::Image(root) => root,
                Root::Host => panic!("not the host"),
            }
        };
        let first = root(b"one");
        assert_eq!(fs::read(first.join("etc/name")).unwrap(), b"one");
        let second = root(b"second");
        assert_eq!(fs::read(second.join("etc/name")).unwrap(), b"second");
        assert_eq!(fs::read(first.join("etc/name")).unwrap(), b"one");
    }

    #[test]
    fn a_saved_image_has_its_layers_whiteouts_and_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let base = tar_of(&[
            ("a", b"1"),
            ("d/old", b"1"),
            ("e/old", b"1"),
            ("keep", b"1"),
        ]);
        let top = tar_of(&[
            (".wh.a", b""),
            ("d/new", b"2"),
            ("d/.wh..wh..opq", b""),
            ("e/.wh.old", b""),
        ]);
        let saved = tar_of(&[
            ("base/layer.tar", &base),
            ("top/layer.tar", &top),
            (
                "c.json",
                br#"{"config":{"Env":["A=1"],"Cmd":["sh"],"Entrypoint":null,"WorkingDir":"/d"}}"#,
            ),
            (
                "manifest.json",
                br#"[{"Config":"c.json","Layers":["base/layer.tar","top/layer.tar"]}]"#,
            ),
        ]);
        fs::write(dir.path().join("app.tar"), saved).unwrap();
        let image = resolve(dir.path(), &dir.path().join("unpacked"), "app").unwrap();
        let Root::Image(root) = image.root else {
            panic!("not the host")
        };
        assert!(
            !root.join("a").exists()
                && !root.join("d/old").exists()
                && !root.join("e/old").exists()
        );
        assert!(
            root.join("keep").exists() && root.join("d/new").exists() && root.join("e").exists()
        );
        assert_eq!(
            (image.config.env, image.config.cmd),
            (vec!["A=1".to_owned()], vec!["sh".to_owned()])
        );
        assert_eq!(image.config.working_dir, "/d");
    }

    #[test]
    fn a_torn_archive_is_refused_and_leaves_nothing_that_counts() {
        let dir = tempfile::tempdir().unwrap();
        let whole = tar_of(&[("big", &[7; 4096])]);
        fs::write(dir.path().join("app.tar"), &whole[..2048]).unwrap();
        for _ in 0..2 {
            let err = resolve(dir.path(), &dir.path().join("unpacked"), "app").unwrap_err();
            assert!(
                err.to_string()
                    .starts_with("image app cannot be unpacked: "),
                "{err}"
            );
        }
    }
}
