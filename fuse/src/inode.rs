//! Inode numbers, stable for the life of a mount: given when a file is first seen and never to another file.
//! So the kernel may keep what it knows of a number for as long as it likes.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use backy_store::{JobName, RevisionId};

use crate::tree::RevisionFile;

/// The number of the mount's root, fixed by the kernel.
pub(crate) const ROOT: u64 = 1;

/// What a number stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Node {
    /// The directory of all jobs.
    Root,
    /// A job's directory.
    Job(JobName),
    /// A link in a job's directory, by its name.
    Link(JobName, String),
    /// A revision's directory.
    Revision(JobName, RevisionId),
    /// A file in a revision's directory.
    File(JobName, RevisionId, RevisionFile),
    /// The directory of the parts of a revision's disk.
    Parts(JobName, RevisionId),
    /// A file in that directory, by its name.
    Part(JobName, RevisionId, Arc<str>),
}

/// The numbers given so far. Grows with the files seen, about 200 bytes each.
#[derive(Debug)]
pub(crate) struct Inodes {
    table: RwLock<Table>,
}

#[derive(Debug)]
struct Table {
    numbers: HashMap<Arc<Node>, u64>,
    /// The node of number `n` is at `n - 1`.
    nodes: Vec<Arc<Node>>,
}

impl Inodes {
    /// Makes a table that knows the root.
    pub(crate) fn new() -> Self {
        let root = Arc::new(Node::Root);
        let table = Table { numbers: HashMap::from([(Arc::clone(&root), ROOT)]), nodes: vec![root] };
        Self { table: RwLock::new(table) }
    }

    /// Returns the number of a node, giving it one when it is new.
    pub(crate) fn number(&self, node: Node) -> u64 {
        if let Some(&number) = self.table.read().unwrap_or_else(PoisonError::into_inner).numbers.get(&node) {
            return number;
        }
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(&number) = table.numbers.get(&node) {
            return number;
        }
        let node = Arc::new(node);
        table.nodes.push(Arc::clone(&node));
        let number = table.nodes.len() as u64;
        table.numbers.insert(node, number);
        number
    }

    /// Returns the node of a number; `None` if the number was never given.
    pub(crate) fn node(&self, number: u64) -> Option<Arc<Node>> {
        let place = usize::try_from(number.checked_sub(1)?).ok()?;
        self.table.read().unwrap_or_else(PoisonError::into_inner).nodes.get(place).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_given_once_and_kept() {
        let inodes = Inodes::new();
        assert_eq!(inodes.number(Node::Root), ROOT);
        let job = JobName::parse("web01").unwrap();
        let revision = RevisionId::parse("last").unwrap();
        let nodes = [
            Node::Job(job.clone()),
            Node::Link(job.clone(), "last".to_owned()),
            Node::Revision(job.clone(), revision.clone()),
            Node::File(job.clone(), revision.clone(), RevisionFile::Image),
            Node::File(job.clone(), revision.clone(), RevisionFile::Info),
            Node::Parts(job.clone(), revision.clone()),
            Node::Part(job, revision, "1.img".into()),
        ];
        let numbers: Vec<u64> = nodes.iter().map(|node| inodes.number(node.clone())).collect();
        assert_eq!(numbers, [2, 3, 4, 5, 6, 7, 8]);
        for (node, number) in nodes.iter().zip(numbers) {
            assert_eq!(inodes.number(node.clone()), number);
            assert_eq!(inodes.node(number).as_deref(), Some(node));
        }
        assert_eq!(inodes.node(0), None);
        assert_eq!(inodes.node(9), None);
        assert_eq!(inodes.node(u64::MAX), None);
    }
}
