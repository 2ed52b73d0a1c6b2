//! Images in the order in which they can be built, or the circle that keeps them from it.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use super::PlanError;

/// What each image needs, by name.
pub(super) type Needs = BTreeMap<String, Vec<String>>;

/// `wanted` and all that they need, dependencies first, otherwise as `wanted` has them.
///
/// # Errors
///
/// [`PlanError::Cycle`].
pub(super) fn order(wanted: &[String], needs: &Needs) -> Result<Vec<String>, PlanError> {
    let mut done = BTreeSet::new();
    let mut ordered = Vec::new();
    for start in wanted {
        // A stack of its own: a chain may be longer than the thread's.
        let mut path: Vec<(&str, usize)> = vec![(start, 0)];
        while let Some((name, next)) = path.last_mut() {
            let name: &str = name;
            if done.contains(name) {
                path.pop();
                continue;
            }
            let need = needs.get(name).and_then(|list| list.get(*next));
            *next += 1;
            let Some(need) = need else {
                done.insert(name);
                ordered.push(name.to_owned());
                path.pop();
                continue;
            };
            if let Some(start) = path.iter().position(|(name, _)| name == need) {
                let circle = path.iter().skip(start).map(|(name, _)| (*name).to_owned());
                return Err(PlanError::Cycle { chain: circle.chain([need.clone()]).collect() });
            }
            path.push((need, 0));
        }
    }
    Ok(ordered)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn needs(pairs: &[(&str, &[&str])]) -> Needs {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        pairs.iter().map(|(name, list)| ((*name).to_owned(), owned(list))).collect()
    }

    #[test]
    fn what_is_needed_comes_first_and_once() {
        let needs = needs(&[("a", &["base"]), ("b", &["a", "base"]), ("base", &[]), ("x", &[])]);
        let ordered = order(&["b".to_owned(), "a".to_owned()], &needs);
        assert_eq!(ordered.unwrap(), ["base", "a", "b"]);
    }

    #[test]
    fn a_circle_is_shown_from_end_to_end() {
        let needs = needs(&[("in", &["a"]), ("a", &["b"]), ("b", &["c"]), ("c", &["a"])]);
        let error = order(&["in".to_owned()], &needs).unwrap_err();
        let shown = "images need one another in a circle: a → b → c → a";
        assert_eq!(error.to_string(), shown);
    }

    proptest! {
        #[test]
        fn order_holds_for_every_graph_without_circles(edges in prop::collection::vec((0..20_usize, 0..20_usize), 0..60)) {
            let name = |number: usize| format!("i{number}");
            let mut needs: Needs = (0..20).map(|number| (name(number), Vec::new())).collect();
            for (from, to) in edges {
                if from > to {
                    needs.entry(name(from)).or_default().push(name(to));
                }
            }
            let wanted: Vec<String> = needs.keys().cloned().collect();
            let ordered = order(&wanted, &needs).unwrap();
            prop_assert_eq!(ordered.len(), 20);
            let at = |wanted: &str| ordered.iter().position(|name| name == wanted);
            for (image, list) in &needs {
                prop_assert!(list.iter().all(|need| at(need) < at(image)));
            }
        }
    }
}
