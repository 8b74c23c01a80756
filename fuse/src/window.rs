//! Which bytes of a disk a file shows: all of them, or those of a partition or a logical volume. Pure.

use std::sync::Arc;

/// A piece of a disk that is one piece of a file too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// First byte of the disk.
    pub(crate) disk_offset: u64,
    /// Bytes.
    pub(crate) length: u64,
}

/// The pieces of a disk that follow each other in a file. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// Where in the file each segment begins, ascending, and the segment.
    segments: Arc<[(u64, Segment)]>,
    size_bytes: u64,
}

impl Window {
    /// Makes the window of a file that consists of these segments. Empty ones are left out. `None` if they are
    /// longer together than a file can be.
    pub(crate) fn new(segments: impl IntoIterator<Item = Segment>) -> Option<Self> {
        let mut size_bytes = 0u64;
        let mut placed = Vec::new();
        for segment in segments.into_iter().filter(|segment| segment.length > 0) {
            segment.disk_offset.checked_add(segment.length)?;
            placed.push((size_bytes, segment));
            size_bytes = size_bytes.checked_add(segment.length).filter(|&size| size <= i64::MAX as u64)?;
        }
        Some(Self { segments: placed.into(), size_bytes })
    }

    /// Makes the window that shows all of a disk.
    pub(crate) fn whole(size_bytes: u64) -> Self {
        let segments: Arc<[_]> = match size_bytes {
            0 => Arc::new([]),
            length => Arc::new([(0, Segment { disk_offset: 0, length })]),
        };
        Self { segments, size_bytes }
    }

    /// Size of the file.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Returns the pieces of the disk that hold `length` bytes of the file from `offset`, cut at the file's end.
    pub(crate) fn pieces(&self, offset: u64, length: u64) -> impl Iterator<Item = Segment> {
        let end = offset.saturating_add(length).min(self.size_bytes);
        // An empty range has no piece: nothing begins before its end.
        let end = if end > offset { end } else { 0 };
        let first = self.segments.partition_point(|(start, segment)| start + segment.length <= offset);
        let reached = self.segments[first..].iter().take_while(move |(start, _)| *start < end);
        reached.map(move |(start, segment)| {
            let skipped = offset.saturating_sub(*start);
            Segment {
                disk_offset: segment.disk_offset + skipped,
                length: (start + segment.length).min(end) - (start + skipped),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(disk_offset: u64, length: u64) -> Segment {
        Segment { disk_offset, length }
    }

    fn pieces(window: &Window, offset: u64, length: u64) -> Vec<Segment> {
        window.pieces(offset, length).collect()
    }

    #[test]
    fn a_range_of_the_file_is_found_on_the_disk() {
        let window =
            Window::new([segment(100, 10), segment(7, 0), segment(50, 5), segment(200, 20)]).unwrap();
        assert_eq!(window.size_bytes(), 35);
        assert_eq!(pieces(&window, 0, 35), [segment(100, 10), segment(50, 5), segment(200, 20)]);
        assert_eq!(pieces(&window, 9, 7), [segment(109, 1), segment(50, 5), segment(200, 1)]);
        assert_eq!(pieces(&window, 10, 1), [segment(50, 1)]);
        assert_eq!(pieces(&window, 34, u64::MAX), [segment(219, 1)]);
        assert_eq!(pieces(&window, 35, 1), []);
        assert_eq!(pieces(&window, u64::MAX, u64::MAX), []);
        assert_eq!(pieces(&window, 12, 0), []);
    }

    #[test]
    fn a_whole_disk_is_one_piece() {
        assert_eq!(pieces(&Window::whole(10), 3, 100), [segment(3, 7)]);
        assert_eq!(pieces(&Window::whole(0), 0, 1), []);
    }

    #[test]
    fn impossible_segments_are_refused() {
        assert_eq!(Window::new([segment(u64::MAX, 1)]), None);
        assert_eq!(Window::new([segment(0, u64::MAX)]), None);
        assert_eq!(Window::new([segment(0, i64::MAX as u64), segment(0, 1)]), None);
        assert_eq!(Window::new([]), Some(Window::whole(0)));
    }
}
