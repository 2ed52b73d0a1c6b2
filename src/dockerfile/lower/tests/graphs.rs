//! Goldens of ops: what a file lowers to, as text.

use std::collections::HashMap;

use crate::dockerfile::{ContextKind, Lowered, Lowering, lower, parse};
use crate::graph::{FileAction, Op, RunOp, SourceRoot};

use crate::dockerfile::lower::tests::{busybox, lowered, options};

/// The graph as text, one op a line, to compare with.
fn shown(lowered: &Lowered) -> String {
    let lines = lowered.graph.ids().map(|id| {
        let node = lowered.graph.node(id);
        let what = match &node.op {
            Op::Scratch => "scratch".to_owned(),
            Op::Image { name, platform } => format!("image {name} {platform}"),
            Op::Context { name } => format!("context {}", name.as_deref().unwrap_or("-")),
            Op::Files(files) => {
                let actions: Vec<String> = files.actions.iter().map(shown_action).collect();
                format!("files on {}: {}", files.base.index(), actions.join("; "))
            }
            Op::Run(run) => shown_run(run),
        };
        format!("{} {what}", id.index())
    });
    let lines: Vec<String> = lines.collect();
    format!("{}\nresult {}", lines.join("\n"), lowered.result.index())
}

fn shown_action(action: &FileAction) -> String {
    match action {
        FileAction::MakeDirectory { path, owner } => format!("directory {path} of {owner:?}"),
        FileAction::Copy { sources, destination, chown, chmod, link, unpack, .. } => {
            let sources: Vec<String> = sources
                .iter()
                .map(|source| match &source.root {
                    SourceRoot::Op(id) => format!("{}:{}", id.index(), source.path),
                    SourceRoot::Inline(body) => {
                        format!("{}={:?}", source.path, String::from_utf8_lossy(body))
                    }
                    SourceRoot::Url { url, checksum } => {
                        format!("{}={url} {checksum:?}", source.path)
                    }
                    SourceRoot::Git(git) => {
                        let keep = git.keep_git_dir.unwrap_or_default();
                        format!("{}={git} {keep} {:?}", source.path, git.checksum)
                    }
                })
                .collect();
            let sources = sources.join(" ");
            format!("copy {sources} → {destination} {chown:?} {chmod:?} {link} {unpack:?}")
        }
    }
}

fn shown_run(run: &RunOp) -> String {
    let pairs = |env: &[(String, String)]| {
        let own = env.iter().filter(|(name, _)| name != "PATH");
        own.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
    };
    let mounts: Vec<String> = run
        .mounts
        .iter()
        .map(|mount| format!("{} {:?} {}", mount.target, mount.kind, mount.read_only))
        .collect();
    format!(
        "run on {}: {:?} env [{}] hidden [{}] in {} as {:?} {:?} {:?} mounts {mounts:?} pipes {:?}",
        run.base.index(),
        run.argv,
        pairs(&run.env),
        pairs(&run.hidden_env),
        run.cwd,
        run.user,
        run.network,
        run.security,
        run.pipes.iter().map(|pipe| &pipe.name).collect::<Vec<_>>(),
    )
}

/// Dockerfile, and the ops that it is.
const GRAPHS: &[(&str, &str)] = &[
    // Only what the target needs, and each source once.
    (
        "FROM nowhere AS unused\nRUN false\nFROM busybox AS a\nCOPY f g /d\nFROM busybox\n\
         COPY --from=a --chown=1:2 --chmod=600 --link /d /e/\nCOPY --link x .\n",
        "0 image busybox linux/amd64\n\
         1 context -\n\
         2 files on 0: copy 1:f 1:g → /d None None false Never\n\
         3 files on 0: copy 2:/d → /e/ Some(\"1:2\") Some(Octal(384)) false Never\n\
         4 files on 3: copy 1:x → / None None true Never\n\
         result 4",
    ),
    // What a process sees.
    (
        "FROM busybox\nARG A=1\nENV B=2 A=3\nARG C\nUSER app\nWORKDIR /w\nWORKDIR x/../y\n\
         RUN --network=none --security=insecure echo  $A\nRUN <<EOF\n#!/bin/awk\nEOF\nRUN [\"a\", \"b c\"]\n",
        "0 image busybox linux/amd64\n\
         1 files on 0: directory /w of \"app\"\n\
         2 files on 1: directory /w/y of \"app\"\n\
         3 run on 2: [\"/bin/sh\", \"-c\", \"echo  $A\"] env [B=2 A=3] hidden [HTTP_PROXY=p http_proxy=p] \
         in /w/y as \"app\" None Insecure mounts [] pipes []\n\
         4 run on 3: [\"/bin/sh\", \"-c\", \"/dev/pipes/EOF\"] env [B=2 A=3] hidden [HTTP_PROXY=p http_proxy=p] \
         in /w/y as \"app\" Default Sandbox mounts [] pipes [\"EOF\"]\n\
         5 run on 4: [\"a\", \"b c\"] env [B=2 A=3] hidden [HTTP_PROXY=p http_proxy=p] \
         in /w/y as \"app\" Default Sandbox mounts [] pipes []\n\
         result 5",
    ),
    // Mounts.
    (
        "FROM busybox AS a\nFROM busybox\nWORKDIR /w\nARG T=/t\n\
         RUN --mount=target=src --mount=from=a,source=/s,target=$T,rw --mount=type=cache,target=c,sharing=locked \
         --mount=type=tmpfs,target=/m,size=1k --mount=type=secret,id=s,env=S --mount=type=secret,target=/k/key,mode=0440 \
         --mount=type=ssh true\n",
        "0 image busybox linux/amd64\n\
         1 files on 0: directory /w of \"\"\n\
         2 context -\n\
         3 run on 1: [\"/bin/sh\", \"-c\", \"true\"] env [T=/t SSH_AUTH_SOCK=/run/buildkit/ssh_agent.0] \
         hidden [HTTP_PROXY=p http_proxy=p] in /w as \"\" Default Sandbox mounts [\
         \"/w/src Bind { from: OpId(2), source: \\\"/\\\" } true\", \
         \"/t Bind { from: OpId(0), source: \\\"/s\\\" } false\", \
         \"/w/c Cache { id: \\\"c\\\", namespace: \\\"\\\", from: None, source: \\\"/\\\", sharing: Locked, mode: 493, uid: 0, gid: 0 } false\", \
         \"/m Tmpfs { size: Some(1024) } false\", \
         \"/run/secrets/s Secret { id: \\\"s\\\", env: Some(\\\"S\\\"), file: false, required: false, mode: 256, uid: 0, gid: 0 } true\", \
         \"/k/key Secret { id: \\\"key\\\", env: None, file: true, required: false, mode: 288, uid: 0, gid: 0 } true\", \
         \"/run/buildkit/ssh_agent.0 Ssh { id: \\\"\\\", required: false, mode: 384, uid: 0, gid: 0 } true\"] pipes []\n\
         result 3",
    ),
    // Remote sources, heredocs, and archives.
    (
        "FROM scratch\nENV X=1\nADD https://h/a/b.tgz?x=1 https://h/ /d/\nADD --unpack=true https://h/x.tar y\n\
         ADD --keep-git-dir=true https://h/r.git#v1:sub /r\nADD a.tar /\nCOPY <<A <<-'B' /h/\na$X\nA\n\tb$X\nB\n",
        "0 scratch\n\
         1 files on 0: copy b.tgz=https://h/a/b.tgz?x=1 None __unnamed__=https://h/ None → /d/ None None false Local\n\
         2 files on 1: copy x.tar=https://h/x.tar None → /y None None false Always\n\
         3 files on 2: copy /=https://h/r.git#v1:sub true None → /r None None false Local\n\
         4 context -\n\
         5 files on 3: copy 4:a.tar → / None None false Local\n\
         6 files on 5: copy A=\"a1\\n\" B=\"b$X\\n\" → /h/ None None false Never\n\
         result 6",
    ),
    // Named contexts: files below a stage are a layer, files beside one are not.
    (
        "FROM files\nCOPY --from=files a /b\nFROM scratch AS one\nRUN never\nFROM one\nCOPY --from=0 / /x\n",
        "0 context files\n\
         1 context one\n\
         2 scratch\n\
         3 files on 2: copy 0:/ → / None None false Never\n\
         4 files on 3: copy 0:a → /b None None false Never\n\
         5 files on 2: copy 1:/ → / None None false Never\n\
         6 files on 5: copy 4:/ → /x None None false Never\n\
         result 6",
    ),
    // Triggers come first, with what they need.
    (
        "FROM busybox AS src\nFROM scratch AS a\nONBUILD COPY --from=src /f /g\nFROM a\nCOPY h /\n",
        "0 scratch\n\
         1 image busybox linux/amd64\n\
         2 files on 0: copy 1:/f → /g None None false Never\n\
         3 context -\n\
         4 files on 2: copy 3:h → / None None false Never\n\
         result 4",
    ),
];

#[test]
fn ops_are_what_the_target_needs_and_nothing_else() {
    let mut options = options();
    options.args.insert("HTTP_PROXY".to_owned(), "p".to_owned());
    for name in ["files", "one"] {
        options.named_contexts.insert(name.to_owned(), ContextKind::Files);
    }
    for (text, graph) in GRAPHS {
        let done = lowered(text, &options, lower);
        assert_eq!(done.map(|done| shown(&done)), Ok((*graph).to_owned()), "{text}");
    }
}

#[test]
fn a_build_argument_that_nothing_asks_for_is_told() {
    let mut options = options();
    for name in ["VERSOIN", "OTHER", "http_proxy", "BUILDKIT_INLINE_CACHE", "TARGETARCH", "VERSION"]
    {
        options.args.insert(name.to_owned(), "1".to_owned());
    }
    let done = lowered("ARG VERSION\nFROM busybox\n", &options, lower).unwrap();
    assert_eq!(
        done.unused_args,
        [
            "build argument OTHER is not used by any ARG",
            "build argument VERSOIN is not used by any ARG (did you mean VERSION?)"
        ]
    );
}

#[test]
fn an_image_is_asked_for_once_and_only_when_it_is_needed() {
    let text = "FROM one AS unused\nFROM two AS a\nFROM --platform=arm64 two\nCOPY --from=a / /\n\
                COPY --from=three / /\nCOPY --from=two:latest / /\nRUN --mount=from=three,target=/m true\n";
    let dockerfile = parse(text).unwrap();
    let Lowering::Needs(requests) = lower(&dockerfile, &options(), &HashMap::new()).unwrap() else {
        panic!("nothing is known yet");
    };
    let shown: Vec<String> =
        requests.iter().map(|request| format!("{} {}", request.name, request.platform)).collect();
    assert_eq!(
        shown,
        ["two linux/amd64", "two linux/arm64", "three linux/amd64", "two:latest linux/amd64"]
    );
}

#[test]
fn a_base_for_another_platform_is_told_unless_it_was_chosen_by_name() {
    let mut plain = options();
    plain.named_contexts.clear();
    plain.platform = "linux/arm64".parse().unwrap();
    let done = lowered("FROM busybox\n", &plain, lower).unwrap();
    let messages: Vec<&str> =
        done.warnings.iter().map(|warning| warning.message.as_str()).collect();
    assert_eq!(
        messages,
        [
            "Base image busybox was pulled with platform \"linux/amd64\", expected \"linux/arm64\" for current build"
        ]
    );
    let named = lowered("FROM busybox\n", &options(), lower).unwrap();
    assert_eq!(named.warnings, []);
    assert_eq!(named.base_platform.to_string(), "linux/amd64");
}

#[test]
fn a_context_for_the_platform_beats_the_one_for_all() {
    let mut options = options();
    for name in ["alpine", "docker.io/library/alpine::linux/arm64"] {
        options.named_contexts.insert(name.to_owned(), ContextKind::Image);
    }
    let text = "FROM --platform=linux/arm64 alpine:latest AS a\nFROM alpine\nCOPY --from=a / /\n";
    let Ok(Lowering::Needs(requests)) = lower(&parse(text).unwrap(), &options, &HashMap::new())
    else {
        panic!("both are asked for");
    };
    let names: Vec<&str> = requests.iter().map(|request| request.name.as_str()).collect();
    assert_eq!(names, ["docker.io/library/alpine::linux/arm64", "alpine"]);
}

#[test]
fn progress_shows_one_line_with_known_variables() {
    let text = "FROM busybox AS build\nARG V=1\nrun echo $V '$V' \\\n  ${W}\nRUN <<EOF\necho a\necho b\nEOF\n";
    let done = lowered(text, &options(), lower).unwrap();
    let titles: Vec<String> = done
        .graph
        .ids()
        .map(|id| done.graph.node(id).place.clone())
        .map(|place| format!("{} {}: {}", place.stage, place.lines.0, place.title))
        .collect();
    assert_eq!(
        titles,
        [" 0: FROM busybox", "build 3: RUN echo 1 '$V'   ${W}", "build 5: RUN <<EOF (echo a...)"]
    );
}

#[test]
fn a_config_that_came_from_elsewhere_keeps_its_history_below() {
    let done = lowered("FROM busybox\nLABEL a=b\n", &options(), lower).unwrap();
    assert_eq!(done.history_below, busybox().history.len());
    assert_eq!(done.config.history[..done.history_below], busybox().history[..]);
}

#[test]
fn ops_share_what_a_process_finds_until_it_changes() {
    let text = "FROM scratch\nARG A=1\nRUN a\nRUN b\nARG B=2\nRUN c\n";
    let graph = lowered(text, &options(), lower).unwrap().graph;
    let runs = graph.ids().map(|id| graph.node(id));
    let runs = runs.filter(|node| matches!(node.op, Op::Run(_)));
    let settings: Vec<_> = runs.map(|node| &node.setting).collect();
    let [a, b, c] = settings[..] else { panic!("{settings:?}") };
    assert!(std::sync::Arc::ptr_eq(a, b));
    assert_ne!(b, c);
}
