//! Users and groups of an image: names → numbers, from its own `/etc/passwd` and `/etc/group`.
//!
//! The files are untrusted: read up to a limit, and only when they are regular. Never asks the host.

use std::io::Read as _;

use super::{FilesError, UserIds};
use crate::{
    snapshot::View,
    tree::{Kind, TreePath},
};

/// Largest account file that is read, in bytes.
const ACCOUNTS_BYTES_MAX: u64 = 16 << 20;

/// Largest user or group number: the kernel's last ones have a meaning of their own, and runtimes
/// disagree on everything above.
const ID_MAX: u32 = i32::MAX as u32;

/// Names looked up in an image, or nothing where no image is below.
pub(super) trait Lookup {
    fn users(&self) -> Result<Vec<User>, FilesError>;
    fn groups(&self) -> Result<Vec<Group>, FilesError>;
}

/// A line of `/etc/passwd`.
#[derive(Clone, Debug)]
pub(super) struct User {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

/// A line of `/etc/group`.
#[derive(Clone, Debug)]
pub(super) struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

impl Lookup for View {
    fn users(&self) -> Result<Vec<User>, FilesError> {
        Ok(read(self, "/etc/passwd")?.lines().filter_map(user_of).collect())
    }

    fn groups(&self) -> Result<Vec<Group>, FilesError> {
        Ok(read(self, "/etc/group")?.lines().filter_map(group_of).collect())
    }
}

/// Looks up `USER` (`name`, `id`, `user:group`; empty is root) in the image's own accounts.
///
/// # Errors
///
/// When a name is unknown, an id is out of range, or the account files are no regular files.
pub fn user_ids(view: &View, user: &str) -> Result<UserIds, FilesError> {
    look_up(view, user)
}

fn look_up(accounts: &dyn Lookup, typed: &str) -> Result<UserIds, FilesError> {
    let (user, group) = match typed.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (typed, None),
    };
    let user = if typed.is_empty() { "0" } else { user };
    let users = accounts.users()?;
    let number = number_of(user)?;
    let named = users.iter().find(|known| known.name == user);
    let known = named.or_else(|| users.iter().find(|known| Some(known.uid) == number));
    let (uid, gid) = match (known, number) {
        (Some(known), _) => (known.uid, known.gid),
        (None, Some(uid)) => (uid, 0),
        (None, None) => return Err(unknown("user", user, users.iter().map(|u| &u.name))),
    };
    let home = known.map(|known| known.home.clone()).filter(|home| !home.is_empty());
    let home = home.unwrap_or_else(|| if uid == 0 { "/root" } else { "/" }.to_owned());
    let Some(group) = group else {
        let name = known.map(|known| known.name.as_str());
        let mut groups = name.map_or(Ok(Vec::new()), |name| groups_of(accounts, name))?;
        if !groups.contains(&gid) {
            groups.push(gid);
            groups.sort_unstable();
        }
        return Ok(UserIds { uid, gid, groups, home });
    };
    let groups = accounts.groups()?;
    let number = number_of(group)?;
    let named = groups.iter().find(|known| known.name == group).map(|known| known.gid);
    let names = groups.iter().map(|known| &known.name);
    let gid = named.or(number).ok_or_else(|| unknown("group", group, names))?;
    Ok(UserIds { uid, gid, groups: vec![gid], home })
}

fn groups_of(accounts: &dyn Lookup, user: &str) -> Result<Vec<u32>, FilesError> {
    let groups = accounts.groups()?;
    let of_user = groups.iter().filter(|group| group.members.iter().any(|member| member == user));
    let mut numbers: Vec<_> = of_user.map(|group| group.gid).collect();
    numbers.sort_unstable();
    numbers.dedup();
    Ok(numbers)
}

/// Reads `--chown` or the owner of a WORKDIR: a user alone brings the group of the same number, a
/// name brings its own; unknown names are 0, as in BuildKit.
///
/// # Errors
///
/// When a number is out of range, or a name is given and there is no root file system (`accounts`
/// is `None`) to look it up in.
pub(super) fn owner_ids(
    accounts: Option<&dyn Lookup>,
    typed: &str,
) -> Result<(u32, u32), FilesError> {
    let (user, group) = match typed.split_once(':') {
        Some((user, group)) => (user, group),
        None => (typed, ""),
    };
    let nowhere = |name: &str| {
        FilesError::Invalid(format!(
            "--chown={typed}: there is no account file below to look `{name}` up in; use numbers"
        ))
    };
    let (uid, mut gid) = match number_of(user)? {
        Some(uid) => (uid, uid),
        None if user.is_empty() => (0, 0),
        None => {
            let users = accounts.ok_or_else(|| nowhere(user))?.users()?;
            let known = users.iter().find(|known| known.name == user);
            known.map_or((0, 0), |known| (known.uid, known.gid))
        }
    };
    match number_of(group)? {
        Some(number) => gid = number,
        None if group.is_empty() => {}
        None => {
            let groups = accounts.ok_or_else(|| nowhere(group))?.groups()?;
            gid = groups.iter().find(|known| known.name == group).map_or(gid, |known| known.gid);
        }
    }
    Ok((uid, gid))
}

/// Names of an owner that the image does not know, as sentences; [`owner_ids`] takes 0 for them.
pub(super) fn unknown_names(accounts: &dyn Lookup, typed: &str) -> Result<Vec<String>, FilesError> {
    let (user, group) = typed.split_once(':').unwrap_or((typed, ""));
    let mut found = Vec::new();
    if !user.is_empty() && number_of(user)?.is_none() {
        let users = accounts.users()?;
        if !users.iter().any(|known| known.name == user) {
            found.push(unknown("user", user, users.iter().map(|known| &known.name)).to_string());
        }
    }
    if !group.is_empty() && number_of(group)?.is_none() {
        let groups = accounts.groups()?;
        if !groups.iter().any(|known| known.name == group) {
            let names = groups.iter().map(|known| &known.name);
            found.push(unknown("group", group, names).to_string());
        }
    }
    Ok(found)
}

/// A number as typed; `None` for a name. Other spellings of a number (`-1`, `00`, `0x0`) are refused:
/// what one program takes for a name another takes for root.
fn number_of(typed: &str) -> Result<Option<u32>, FilesError> {
    let blank = !typed.is_empty() && typed.trim().is_empty();
    let digits = typed.strip_prefix(['+', '-']).unwrap_or(typed);
    if !blank && !digits.starts_with(|first: char| first.is_ascii_digit()) {
        return Ok(None);
    }
    let canonical = typed == "0" || !typed.starts_with('0');
    let number = typed.parse().ok().filter(|number| *number <= ID_MAX);
    match number.filter(|_| canonical && !typed.starts_with('+')) {
        Some(number) => Ok(Some(number)),
        None if !blank
            && !typed.bytes().all(|byte| byte.is_ascii_digit())
            && typed == digits
            && !typed.starts_with("0x") =>
        {
            // A name that begins with a digit, such as `7zip`.
            Ok(None)
        }
        None => Err(FilesError::Invalid(format!(
            "`{typed}` is no user or group: use a name, or a number from 0 to {ID_MAX}"
        ))),
    }
}

fn unknown<'a>(what: &str, name: &str, known: impl Iterator<Item = &'a String>) -> FilesError {
    let near = known
        .map(|known| (strsim::jaro_winkler(known, name), known))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, known)| format!("; did you mean `{known}`?"));
    let file = if what == "user" { "passwd" } else { "group" };
    FilesError::Invalid(format!(
        "unable to find {what} {name}: no matching entries in {file} file{}",
        near.unwrap_or_default()
    ))
}

/// Reads an account file; empty when there is none.
fn read(view: &View, path: &str) -> Result<String, FilesError> {
    let place = view.resolve(path.as_bytes())?;
    let Some(entry) = view.entry(&place) else { return Ok(String::new()) };
    if !matches!(entry.kind, Kind::File { .. } | Kind::Hardlink { .. }) {
        return Err(FilesError::Invalid(format!("{path} of the image is no regular file")));
    }
    if entry.size() > ACCOUNTS_BYTES_MAX {
        return Err(too_large(path));
    }
    let mut bytes = Vec::new();
    let content = view.open_file(&place)?;
    content
        .take(ACCOUNTS_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| FilesError::Io { path: shown(&place), source })?;
    if bytes.len() as u64 > ACCOUNTS_BYTES_MAX {
        return Err(too_large(path));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn shown(place: &TreePath) -> String {
    format!("{place} of the image")
}

fn too_large(path: &str) -> FilesError {
    FilesError::Invalid(format!(
        "{path} of the image has more than {ACCOUNTS_BYTES_MAX} bytes, the limit for account files"
    ))
}

fn user_of(line: &str) -> Option<User> {
    let mut fields = line.trim().split(':');
    let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
    let uid = fields.nth(1)?.parse().ok().filter(|id| *id <= ID_MAX)?;
    let gid = fields.next()?.parse().ok().filter(|id| *id <= ID_MAX)?;
    let home = fields.nth(1).unwrap_or_default();
    Some(User { name: name.to_owned(), uid, gid, home: home.to_owned() })
}

fn group_of(line: &str) -> Option<Group> {
    let mut fields = line.trim().split(':');
    let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
    let gid = fields.nth(1)?.parse().ok().filter(|id| *id <= ID_MAX)?;
    let members = fields.next().unwrap_or_default();
    let members = members.split(',').filter(|member| !member.is_empty()).map(str::to_owned);
    Some(Group { name: name.to_owned(), gid, members: members.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The accounts of the corpus' base image.
    struct Base;

    impl Lookup for Base {
        fn users(&self) -> Result<Vec<User>, FilesError> {
            let text = "root:x:0:0:root:/root:/bin/sh\n# c\n\nbroken\nwww-data:x:33:33::/var/www:\n\
                        app:x:1000:1001:app:/home/app:/bin/sh\nbig:x:4294967295:0::/:\n";
            Ok(text.lines().filter_map(user_of).collect())
        }

        fn groups(&self) -> Result<Vec<Group>, FilesError> {
            let text = "root:x:0:\nstaff:x:50:app\napp:x:1001:\naudio:x:29:app,www-data\nwheel:x:10:root\n";
            Ok(text.lines().filter_map(group_of).collect())
        }
    }

    #[test]
    fn users_are_looked_up_as_runc_does() {
        // USER, uid, gid, groups, home
        let rows: &[(&str, u32, u32, &[u32], &str)] = &[
            ("", 0, 0, &[0, 10], "/root"),
            ("root", 0, 0, &[0, 10], "/root"),
            ("app", 1000, 1001, &[29, 50, 1001], "/home/app"),
            ("1000", 1000, 1001, &[29, 50, 1001], "/home/app"),
            ("app:staff", 1000, 50, &[50], "/home/app"),
            ("app:7", 1000, 7, &[7], "/home/app"),
            ("77", 77, 0, &[0], "/"),
            ("77:88", 77, 88, &[88], "/"),
        ];
        for (typed, uid, gid, groups, home) in rows {
            let found = look_up(&Base, typed).unwrap();
            let expected =
                UserIds { uid: *uid, gid: *gid, groups: groups.to_vec(), home: (*home).to_owned() };
            assert_eq!(found, expected, "USER {typed}");
        }
    }

    #[test]
    fn s16_strange_spellings_of_a_user_are_refused_and_never_root() {
        let rows = [
            "4294967296",
            "-1",
            "2147483648",
            "0x0",
            "00",
            "1000:4294967295",
            " ",
            "nosuch",
            "app:nosuch",
            "+0",
            "big",
            ":",
        ];
        for typed in rows {
            let found = look_up(&Base, typed);
            assert!(found.is_err(), "USER {typed:?} is {found:?}");
        }
        let message = look_up(&Base, "wwwdata").unwrap_err().to_string();
        assert!(message.ends_with("did you mean `www-data`?"), "{message}");
    }

    #[test]
    fn owners_are_looked_up_as_buildkit_does() {
        let rows = [
            ("10:20", (10, 20)),
            ("10", (10, 10)),
            ("1000", (1000, 1000)),
            ("app", (1000, 1001)),
            ("app:staff", (1000, 50)),
            ("app:7", (1000, 7)),
            ("7:audio", (7, 29)),
            ("nobodyhere", (0, 0)),
            ("app:nogroup", (1000, 1001)),
            ("0:staff", (0, 50)),
            (":staff", (0, 50)),
            ("", (0, 0)),
        ];
        for (typed, expected) in rows {
            assert_eq!(owner_ids(Some(&Base), typed).unwrap(), expected, "--chown={typed}");
        }
    }

    #[test]
    fn c14_owners_out_of_range_or_without_accounts_are_refused() {
        for typed in ["4294967296", "-1", "0:4294967295", "00"] {
            assert!(owner_ids(Some(&Base), typed).is_err(), "--chown={typed}");
        }
        assert!(owner_ids(None, "app").is_err());
        assert_eq!(owner_ids(None, "4:5").unwrap(), (4, 5));
    }
}
