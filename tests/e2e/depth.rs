//! Images of more layers than an overlay takes: what processes see of them, and what they change.

use std::{collections::BTreeMap, fs};

use crate::support::{
    Done, User,
    images::{self, Layer, Layout, Tar},
};

/// The kernel takes 500 directories.
const LAYERS: usize = 620;

/// Layers of all kinds of changes below `/many`, and what is there in the end.
fn layers() -> (Vec<Layer>, BTreeMap<String, String>) {
    let mut layers = images::base_layers();
    let mut there = BTreeMap::new();
    for number in 0..LAYERS {
        let mut tar = Tar::new().dir("many", 0o755);
        if number % 3 == 2 {
            tar = tar.file(&format!("many/.wh.file{}", number - 1), "");
            there.remove(&format!("file{}", number - 1));
        }
        tar = tar.file(&format!("many/file{number}"), format!("{number}\n"));
        there.insert(format!("file{number}"), number.to_string());
        // One file that every tenth layer has in a newer form.
        if number % 10 == 0 {
            tar = tar.file("many/again", format!("at {number}\n"));
            there.insert("again".to_owned(), format!("at {number}"));
        }
        if number == 250 {
            // All that was there so far goes.
            tar = tar.file("many/.wh..wh..opq", "");
            let new = [format!("file{number}"), "again".to_owned()];
            there.retain(|name, _| new.contains(name));
        }
        layers.push(Layer::plain(tar.end()));
    }
    (layers, there)
}

fn steps_see_and_change_what_is_there(user: &User) {
    let (layers, mut there) = layers();
    let layout = Layout::new(user.work().join("deep"));
    layout.image(&images::config_of(&layers, &images::plain_process()), &layers);
    user.write(
        "Dockerfile",
        "FROM deep\n\
         RUN cd /many && for name in *; do echo \"$name=$(cat $name)\"; done > /seen\n\
         RUN rm /many/file600 /many/file252 && echo new > /many/new && echo more >> /many/again\n\
         RUN cd /many && for name in *; do echo \"$name=$(cat $name)\"; done > /seen-last\n",
    );
    let mut build = user.idp();
    build.args(["build", "--build-context", "deep=oci-layout://deep:latest", "-t", "deep:v1"]);
    Done::of(build.args(["-o", "type=local,dest=out", "."])).ok();
    let seen = |name: &str| fs::read_to_string(user.work().join("out").join(name)).unwrap();
    let lines = |there: &BTreeMap<String, String>| -> String {
        there.iter().map(|(name, text)| format!("{name}={text}\n")).collect()
    };
    assert_eq!(sorted(&seen("seen")), sorted(&lines(&there)));
    there.remove("file600");
    there.remove("file252");
    there.insert("new".to_owned(), "new".to_owned());
    let again = there.get_mut("again").unwrap();
    *again = format!("{again}\nmore");
    assert_eq!(sorted(&seen("seen-last")), sorted(&lines(&there)));
    // The output is put together from listings, without any of the directories.
    let many = fs::read_dir(user.work().join("out/many")).unwrap();
    let names: Vec<_> = many.map(|name| name.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(names.len(), there.len());
    // What a step adds is what it changed, not what it stood on: here `new` and `again`.
    let sizes = Done::of(user.idp().args(["history", "--format", "{{.Size}}", "deep:v1"])).ok();
    let size: String = sizes.lines().nth(1).unwrap().chars().filter(char::is_ascii_digit).collect();
    assert_eq!(size, "new\nat 610\nmore\n".len().to_string(), "{sizes}");
    // Directories that were made for the steps are gone with them.
    let left = fs::read_dir(user.home().join("images/tmp")).unwrap().count();
    assert_eq!(left, 0);
}

fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    lines
}

#[test]
fn a_stack_deeper_than_an_overlay_is_whole() {
    steps_see_and_change_what_is_there(&User::new());
}

#[test]
fn a_stack_deeper_than_an_overlay_is_whole_for_an_ordinary_user() {
    steps_see_and_change_what_is_there(&User::rootless());
}
