//! What a task sees and may do.

mod common;

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    process::Command,
};

use common::{DEADLINE, Node, assignment, sh, term};
use model::spec::{ContainerSpec, Resources};
use swarmnet_executor::LogStream;

#[tokio::test]
async fn the_environment_is_dockers_and_the_users() {
    let node = Node::new();
    let mut container = sh("echo $PATH; echo $HOSTNAME; echo $HOME; echo $A; echo ${UNSET-none}");
    container.env = ["A=a b", "UNSET"].map(str::to_owned).to_vec();
    let (status, output) = node.run(container).await;
    let home = "/root";
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(
        (status, output),
        (0, format!("{path}\nweb-1\n{home}\na b\nnone"))
    );
}

#[tokio::test]
async fn names_files_and_namespaces_are_the_tasks() {
    let node = Node::new();
    let script = "hostname; cat /etc/hostname /etc/resolv.conf /etc/hosts; echo $$; \
        stat -Lc %i /proc/self/ns/net; ls /sys/class/net; pwd; umask; cat /proc/self/cgroup | tail -n1";
    let task = node.sh(script).await;
    assert_eq!(node.executor.wait(task).await.unwrap().code, Some(0));
    let output = node.output(task, LogStream::Stdout).await;
    let netns = fs::metadata(node.netns.path()).unwrap().ino();
    let want = format!(
        "web-1\nweb-1\nnameserver 127.0.0.11\n10.0.1.3 web-1\n1\n{netns}\nlo\n/\n0022\n0::/swarmnet/{task}"
    );
    assert_eq!(output, want);
    assert_ne!(
        fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
        "nameserver 127.0.0.11\n"
    );
}

#[tokio::test]
async fn the_agents_precedence_is_not_its_tasks() {
    // SAFETY: takes numbers only; 0 is this thread, which starts the shim.
    let set = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -10) };
    assert_eq!(set, 0, "needs CAP_SYS_NICE");
    let (_, output) = Node::new().run(sh("nice")).await;
    assert_eq!(output, "0");
}

#[tokio::test]
async fn root_in_a_task_is_not_root_of_the_node() {
    let node = Node::new();
    let script = "grep CapEff /proc/self/status; \
        ip link add d0 type bridge 2>/dev/null && echo made a link; \
        echo 1 2>/dev/null > /proc/sys/kernel/panic && echo wrote a sysctl; \
        echo h 2>/dev/null > /proc/sysrq-trigger && echo pressed sysrq; \
        mount -t tmpfs none /mnt 2>/dev/null && echo mounted; \
        cat /proc/sys/net/ipv4/ip_unprivileged_port_start; ls /proc/self/fd | wc -l";
    let (_, output) = node.run(sh(script)).await;
    // Standard streams, and the directory that `ls` itself has open: nothing leaks in.
    assert_eq!(output, "CapEff:\t00000000a80425fb\n0\n4");
}

#[tokio::test]
async fn user_and_directory_are_as_asked() {
    let node = Node::new();
    let mut container = sh("id -u; id -g; pwd; echo $HOME; grep CapEff /proc/self/status");
    container.user = Some("nobody".to_owned());
    container.dir = Some("/usr".to_owned());
    let (_, output) = node.run(container).await;
    assert_eq!(
        output,
        "65534\n65534\n/usr\n/nonexistent\nCapEff:\t0000000000000000"
    );

    for (user, dir, sentence) in [
        (
            Some("who"),
            None,
            "unable to find user who: no matching entries in passwd file",
        ),
        (
            None,
            Some("/no/dir"),
            "enter the directory /no/dir: No such file or directory (os error 2)",
        ),
    ] {
        let mut container = sh("true");
        container.user = user.map(str::to_owned);
        container.dir = dir.map(str::to_owned);
        let task = assignment(container);
        node.executor
            .prepare(&task, &node.environment())
            .await
            .unwrap();
        assert_eq!(
            node.executor.start(task.id).await.unwrap_err().to_string(),
            sentence
        );
    }
}

#[tokio::test]
async fn a_missing_network_namespace_is_named() {
    let node = Node::new();
    let task = assignment(sh("true"));
    let mut environment = node.environment();
    environment.netns = "/run/netns/no-such".into();
    node.executor.prepare(&task, &environment).await.unwrap();
    let err = node.executor.start(task.id).await.unwrap_err().to_string();
    assert!(
        err.starts_with("open the network namespace /run/netns/no-such: "),
        "{err}"
    );
}

#[tokio::test]
async fn a_read_only_root_takes_no_writes() {
    let node = Node::new();
    let target = node.dir.join("written");
    let mut container = sh(&format!(
        "touch {} 2>&1; echo $?; echo x > /dev/shm/x && echo shm",
        target.display()
    ));
    container.read_only = true;
    let (_, output) = node.run(container).await;
    assert!(output.contains("Read-only file system\n1\nshm"), "{output}");
    assert!(!target.exists() && !Path::new("/dev/shm/x").exists());
}

#[tokio::test]
async fn a_terminal_is_one_when_asked_for() {
    let node = Node::new();
    let script = "test -t 0 && test -t 1 && test -t 2; echo $? $TERM";
    let mut container = sh(script);
    container.tty = true;
    assert_eq!(node.run(container).await.1.trim_end(), "0 xterm");
    assert_eq!(node.run(sh(script)).await.1.trim_end(), "1");
}

/// With an init, a program without handlers ends at once on the stop signal, and orphans are
/// collected.
#[tokio::test]
async fn an_init_hands_on_signals_and_reaps() {
    let node = Node::new();
    let mut container =
        sh("(sleep 0.01 &); sleep 0.2; ps -eo stat= | grep -c Z; echo $$; exec sleep 1000");
    container.init = Some(true);
    let task = node.start(container).await;
    node.wait_for_line(task, "2").await;
    let exit = node.executor.stop(task, term(), DEADLINE).await.unwrap();
    assert_eq!(exit.status(), 143);
    assert!(
        node.output(task, LogStream::Stdout)
            .await
            .starts_with("0\n")
    );
}

#[tokio::test]
async fn limits_are_in_force_or_said_not_to_be() {
    let node = Node::new();
    let mut task = assignment(sh("cat /sys/fs/cgroup/pids.max"));
    task.spec.resources = Resources {
        limit_pids: Some(77),
        ..Resources::default()
    };
    let notices = node
        .executor
        .prepare(&task, &node.environment())
        .await
        .unwrap();
    let root = common::config(&node.dir).cgroup_root;
    let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap();
    if controllers.split_whitespace().any(|name| name == "pids") {
        let max = root
            .join("swarmnet")
            .join(task.id.to_string())
            .join("pids.max");
        assert_eq!(
            (notices, fs::read_to_string(max).unwrap()),
            (vec![], "77\n".to_owned())
        );
    } else {
        assert_eq!(notices.len(), 1);
        assert!(notices[0].starts_with("the pids limit (77) is not in force: cgroup2 at `"));
    }
    node.executor.remove(task.id).await.unwrap();
}

/// Copies a program and the libraries it is linked with into a root.
fn install(program: &str, root: &Path) {
    let linked = Command::new("ldd").arg(program).output().unwrap();
    let linked = String::from_utf8(linked.stdout).unwrap();
    let libraries = linked
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    for file in libraries.chain([program]) {
        let target = root.join(&file[1..]);
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(file, target).unwrap();
    }
}

fn make_root(root: &Path) {
    for program in ["/bin/sh", "/bin/cat", "/bin/ls"] {
        install(program, root);
    }
    fs::create_dir_all(root.join("etc")).unwrap();
    // As a systemd machine has it: a link to what is not there.
    std::os::unix::fs::symlink("/run/none/resolv.conf", root.join("etc/resolv.conf")).unwrap();
    fs::write(root.join("mark"), "of the image").unwrap();
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
}

fn in_image(image: &str, script: &str) -> ContainerSpec {
    ContainerSpec {
        image: image.to_owned(),
        command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        ..ContainerSpec::default()
    }
}

const LOOK: &str = "cat /etc/resolv.conf /etc/hostname /mark; echo; echo changed > /mark; cat /mark; \
    pwd; [ -c /dev/null ] && [ -w /dev/null ] && echo null; [ -e /usr/share/doc ] || echo bare; echo /proc/[0-9]*";

#[tokio::test]
async fn an_image_directory_is_the_root_and_stays_as_it_is() {
    let node = Node::new();
    let root = node.dir.join("images/app");
    make_root(&root);
    let mut container = in_image("app:latest", LOOK);
    container.dir = Some("/work/deep".to_owned());
    for _ in 0..2 {
        let (_, output) = node.run(container.clone()).await;
        let want =
            "nameserver 127.0.0.11\nweb-1\nof the image\nchanged\n/work/deep\nnull\nbare\n/proc/1";
        assert_eq!(output, want);
    }
    assert_eq!(
        fs::read_to_string(root.join("mark")).unwrap(),
        "of the image"
    );
    assert!(!root.join("work").exists());
}

#[tokio::test]
async fn an_image_archive_is_the_root() {
    let node = Node::new();
    let root = node.dir.join("root");
    make_root(&root);
    fs::create_dir(node.dir.join("images")).unwrap();
    let archived = Command::new("tar")
        .arg("-C")
        .arg(&root)
        .arg("-cf")
        .arg(node.dir.join("images/packed.tar"))
        .arg(".")
        .status()
        .unwrap();
    assert!(archived.success());
    let mut container = in_image("packed", LOOK);
    container.read_only = true;
    let task = node.start(container).await;
    node.executor.wait(task).await.unwrap();
    let output = node.output(task, LogStream::Stdout).await;
    assert_eq!(
        output,
        "nameserver 127.0.0.11\nweb-1\nof the image\nof the image/\nnull\nbare\n/proc/1"
    );
    node.executor.remove(task).await.unwrap();
}
