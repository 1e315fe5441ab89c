//! A service that must not notice what happens to the managers.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use crate::{Cluster, Task, Traffic};

/// Tasks of the lab's server, with a connection through each node that stays open.
pub struct Web {
    processes: BTreeMap<String, String>,
    pub open: Traffic,
}

impl Web {
    /// Three tasks on all nodes, as `web`, published as port 8080.
    ///
    /// # Errors
    /// What the cluster refused, or who did not answer.
    pub fn start(cluster: &Cluster) -> Result<Self> {
        let all: Vec<_> = (1..=cluster.nodes().len()).collect();
        Self::start_on(cluster, &all, &[])
    }

    /// With further options of `service create`, and connections through these nodes only.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_on(cluster: &Cluster, entries: &[usize], options: &[&str]) -> Result<Self> {
        let options = [&["--publish", "8080:80"], options].concat();
        let tasks = cluster.serve("web", 3, &options)?;
        let processes = Self::processes(cluster, &tasks)?;
        cluster.settle()?;
        let all = cluster.entries(8080)?;
        let through: Vec<_> = entries.iter().map(|number| all[number - 1]).collect();
        let open = Traffic::of_calm_conversations(cluster.client(), &through)?;
        Ok(Self { processes, open })
    }

    /// The tasks are the processes that they were in the beginning.
    ///
    /// # Errors
    /// When they are not.
    pub fn is_untouched(&self, cluster: &Cluster) -> Result<()> {
        let after = Self::processes(cluster, &cluster.wait_running("web", self.processes.len())?)?;
        ensure!(
            self.processes == after,
            "tasks were restarted: {:?}, now {after:?}",
            self.processes
        );
        Ok(())
    }

    /// Every request was answered, by the tasks that were there in the beginning.
    ///
    /// # Errors
    /// When not.
    pub fn end(self, cluster: &Cluster) -> Result<()> {
        cluster.settle()?;
        self.is_untouched(cluster)?;
        self.open.end()
    }

    /// Process of each task.
    ///
    /// # Errors
    /// What the cluster said.
    pub fn processes(cluster: &Cluster, tasks: &[Task]) -> Result<BTreeMap<String, String>> {
        let format = "{{.Status.ContainerStatus.PID}}";
        let pid = |task: &Task| -> Result<_> {
            let inspect = ["inspect", "--type", "task", "--format", format, &task.id];
            let pid = cluster.manager()?.docker(&inspect)?;
            Ok((task.id.clone(), pid.trim().to_owned()))
        };
        tasks.iter().map(pid).collect()
    }
}
