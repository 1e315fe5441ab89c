//! `user`, `uid`, `user:group` or `uid:gid`, looked up in the task's root filesystem.

use std::fs;

use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use super::sys::{CODE_SETUP, Failure, OrFail};

/// Whom the program runs as.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct User {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    pub home: String,
}

/// One line of `/etc/passwd` (name, uid, gid, home) or `/etc/group` (name, gid, members).
type Line<'a> = Vec<&'a str>;

impl User {
    /// Looks up `spec`; `None` is root. Numbers need no entry.
    pub fn find(spec: Option<&str>) -> Result<Self, Failure> {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Self::parse(
            spec.unwrap_or("0"),
            &read("/etc/passwd"),
            &read("/etc/group"),
        )
        .map_err(|message| Failure::new(CODE_SETUP, message))
    }

    fn parse(spec: &str, passwd: &str, group: &str) -> Result<Self, String> {
        let (user, own_group) = match spec.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (spec, None),
        };
        let user = if user.is_empty() { "0" } else { user };
        let entry = lines(passwd, 7).find(|line| line[0] == user || line[2] == user);
        let uid = id(entry.as_ref().map_or(user, |line| line[2])).ok_or_else(|| {
            format!("unable to find user {user}: no matching entries in passwd file")
        })?;
        let primary = entry.as_ref().and_then(|line| id(line[3])).unwrap_or(0);
        let gid = match own_group.filter(|group| !group.is_empty()) {
            Some(name) => group_id(name, group)?,
            None => primary,
        };
        let name = entry.as_ref().map(|line| line[0]);
        let member =
            |line: &Line<'_>| name.is_some_and(|name| line[3].split(',').any(|m| m == name));
        // A group that was asked for is the only one, as with Docker.
        let groups = match own_group {
            Some(_) => Vec::new(),
            None => lines(group, 4)
                .filter(member)
                .filter_map(|line| id(line[2]))
                .collect(),
        };
        let home = entry.map_or("", |line| line[5]);
        Ok(Self {
            uid,
            gid,
            groups,
            home: if home.is_empty() { "/" } else { home }.to_owned(),
        })
    }

    /// Becomes this user, for good.
    pub fn switch(&self) -> Result<(), Failure> {
        let groups: Vec<Gid> = self.groups.iter().copied().map(Gid::from_raw).collect();
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        setgroups(&groups).or_fail(|| format!("set groups {:?}", self.groups))?;
        setresgid(gid, gid, gid).or_fail(|| format!("set group {gid}"))?;
        setresuid(uid, uid, uid).or_fail(|| format!("set user {uid}"))
    }
}

fn id(text: &str) -> Option<u32> {
    text.parse().ok()
}

fn group_id(name: &str, group: &str) -> Result<u32, String> {
    let entry = lines(group, 4).find(|line| line[0] == name);
    id(entry.map_or(name, |line| line[2]))
        .ok_or_else(|| format!("unable to find group {name}: no matching entries in group file"))
}

fn lines(file: &str, fields: usize) -> impl Iterator<Item = Line<'_>> {
    let split = file.lines().map(|line| line.split(':').collect());
    split.filter(move |line: &Line<'_>| line.len() >= fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:r:/root:/bin/sh\nweb:x:33:34:w:/var/www:/bin/sh\nbroken\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\nlog:x:4:syslog,web\nadm:x:5:webmaster\n";

    fn user(spec: &str) -> Result<(u32, u32, Vec<u32>, String), String> {
        User::parse(spec, PASSWD, GROUP).map(|u| (u.uid, u.gid, u.groups, u.home))
    }

    #[test]
    fn names_and_numbers_find_their_entries() {
        assert_eq!(user("0"), Ok((0, 0, vec![], "/root".into())));
        assert_eq!(user("web"), Ok((33, 34, vec![4], "/var/www".into())));
        assert_eq!(user("33"), Ok((33, 34, vec![4], "/var/www".into())));
        assert_eq!(user("web:log"), Ok((33, 4, vec![], "/var/www".into())));
        assert_eq!(user("web:77"), Ok((33, 77, vec![], "/var/www".into())));
        assert_eq!(user("1000"), Ok((1000, 0, vec![], "/".into())));
    }

    #[test]
    fn unknown_names_are_dockers_sentence() {
        let no_user = "unable to find user nobody-here: no matching entries in passwd file";
        assert_eq!(user("nobody-here"), Err(no_user.into()));
        let no_group = "unable to find group nix: no matching entries in group file";
        assert_eq!(user("web:nix"), Err(no_group.into()));
    }
}
