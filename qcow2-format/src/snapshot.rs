//! The snapshot table (spec: "Snapshots"): disks the image holds besides the active one.
//!
//! ```text
//! byte 0         40            + extra_data_size      next multiple of 8
//!      [ fixed  ][ extra data ][ id ][ name ][ 0 … ][ the next entry …
//!                 0  vm_state_size, 64 bits
//!                 8  disk_size
//!                 16 icount
//! ```
//!
//! QEMU's ceilings hold: 65,536 snapshots (the header's check), 64 MiB of table, 1024 bytes of extra
//! data. The table is read when a snapshot is asked for. Callers: `image`.

use zerocopy::{FromBytes, IntoBytes};

use crate::address::HostOffset;
use crate::error::{Error, FieldError, RequestError, Result, Violation};
use crate::header::Header;
use crate::io::{ReadAt, zeroed};
use crate::l1::L1Place;
use crate::raw::RawSnapshot;

pub(crate) const TABLE_MAX_BYTES: u64 = 64 << 20;
pub(crate) const EXTRA_DATA_MAX_BYTES: u32 = 1024;

/// An internal snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its id, unique in the image: in QEMU's images a number in decimal.
    pub id: Vec<u8>,
    /// Its name, chosen by a person.
    pub name: Vec<u8>,
    /// Where its L1 table starts.
    pub l1_table_offset: HostOffset,
    /// Number of entries in its L1 table.
    pub l1_size: u32,
    /// When it was taken, in seconds since 1970.
    pub date_sec: u32,
    /// The rest of the time it was taken, in nanoseconds.
    pub date_nsec: u32,
    /// Time the guest had run, in nanoseconds.
    pub vm_clock_nsec: u64,
    /// Bytes of the virtual machine's state; 0 if the disk alone was kept.
    pub vm_state_size: u64,
    /// Size of the disk in bytes, where the entry tells; else it is the image's.
    pub disk_size: Option<u64>,
    /// Instructions the guest had run, where the entry tells.
    pub icount: Option<u64>,
    /// Where its entry lies.
    at: HostOffset,
}

impl Snapshot {
    /// Reads the snapshot table of the image in `storage`, whose header is `header`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] from the storage; [`Error::Corrupt`] if an entry breaks a rule or lies past the
    /// end of the file.
    pub fn read_table(storage: &(impl ReadAt + ?Sized), header: &Header) -> Result<Vec<Self>> {
        Ok(Self::read_table_to(storage, header)?.0)
    }

    /// As [`Snapshot::read_table`], with where the table ends.
    pub(crate) fn read_table_to(
        storage: &(impl ReadAt + ?Sized),
        header: &Header,
    ) -> Result<(Vec<Self>, u64)> {
        let mut table = Vec::new();
        let start = header.snapshots_offset().to_u64();
        let mut at = start;
        for _ in 0..header.nb_snapshots() {
            let (snapshot, end) = Self::read(storage, at)?;
            if end.saturating_sub(start) > TABLE_MAX_BYTES {
                let violation = Violation::SnapshotTableTooLarge;
                return Err(corrupt("nb_snapshots", header.nb_snapshots().into(), 60, violation));
            }
            table.push(snapshot);
            at = end.next_multiple_of(8);
        }
        Ok((table, at))
    }

    /// The snapshot with the id `name`, or else the first one with that name, as qemu-img looks
    /// for it.
    ///
    /// # Errors
    ///
    /// As [`Snapshot::read_table`]; [`RequestError::NoSuchSnapshot`].
    pub fn find(storage: &(impl ReadAt + ?Sized), header: &Header, name: &[u8]) -> Result<Self> {
        let mut table = Self::read_table(storage, header)?;
        let index = table
            .iter()
            .position(|snapshot| snapshot.id == name)
            .or_else(|| table.iter().position(|snapshot| snapshot.name == name));
        match index {
            Some(index) => Ok(table.swap_remove(index)),
            None => Err(RequestError::NoSuchSnapshot { name: name.to_vec() }.into()),
        }
    }

    /// Where its L1 table lies, and which fields say so.
    pub(crate) fn l1_place(&self) -> L1Place {
        L1Place {
            at: self.l1_table_offset,
            entries: self.l1_size,
            offset_field: ("snapshot's l1_table_offset", self.at.0),
            size_field: ("snapshot's l1_size", self.at.0.saturating_add(8)),
        }
    }

    /// The entry at `at`, and where it ends.
    fn read(storage: &(impl ReadAt + ?Sized), at: u64) -> Result<(Self, u64)> {
        let mut raw = [0; size_of::<RawSnapshot>()];
        fill(storage, &mut raw, at)?;
        let (raw, _) = RawSnapshot::read_from_prefix(raw.as_bytes()).map_err(|_| {
            corrupt("snapshot", 0, at, Violation::Truncated { needed: 40, available: 0 })
        })?;
        let extra_size = raw.extra_data_size.get();
        if extra_size > EXTRA_DATA_MAX_BYTES {
            let field = "snapshot's extra_data_size";
            let place = at.saturating_add(36);
            return Err(corrupt(field, extra_size.into(), place, Violation::SnapshotExtraData));
        }
        let behind = at.saturating_add(size_of::<RawSnapshot>() as u64);
        let lengths = [extra_size, raw.id_str_size.get().into(), raw.name_size.get().into()];
        let [extra, id, name] = lengths.map(|length| usize::try_from(length).unwrap_or(usize::MAX));
        // At most 1 KiB and twice 64 KiB.
        let mut rest = zeroed(extra + id + name).map_err(Error::io("read a snapshot", behind))?;
        fill(storage, &mut rest, behind)?;
        let name = rest.split_off(extra + id);
        let id = rest.split_off(extra);
        let number = |start: usize| {
            let bytes = rest.get(start..)?.first_chunk()?;
            Some(u64::from_be_bytes(*bytes))
        };
        let end = behind.saturating_add((rest.len() + id.len() + name.len()) as u64);
        let snapshot = Self {
            l1_table_offset: HostOffset(raw.l1_table_offset.get()),
            l1_size: raw.l1_size.get(),
            date_sec: raw.date_sec.get(),
            date_nsec: raw.date_nsec.get(),
            vm_clock_nsec: raw.vm_clock_nsec.get(),
            vm_state_size: number(0).unwrap_or_else(|| raw.vm_state_size.get().into()),
            disk_size: number(8),
            icount: number(16),
            id,
            name,
            at: HostOffset(at),
        };
        Ok((snapshot, end))
    }
}

fn fill(storage: &(impl ReadAt + ?Sized), bytes: &mut [u8], at: u64) -> Result<()> {
    let count = storage.read_full_at(bytes, at).map_err(Error::io("read a snapshot", at))?;
    if count < bytes.len() {
        let (needed, available) = (bytes.len() as u64, count as u64);
        let violation = Violation::Truncated { needed, available };
        return Err(corrupt("snapshot", available, at, violation));
    }
    Ok(())
}

fn corrupt(field: &'static str, value: u64, offset: u64, violation: Violation) -> Error {
    FieldError { field, value, offset, violation }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SNAPSHOTS: &[u8] = include_bytes!("../../testdata/images/snapshots.qcow2");

    fn table(image: &[u8]) -> Result<Vec<Snapshot>> {
        Snapshot::read_table(image, &Header::read(image).unwrap())
    }

    /// The image with `bytes` at `offset` of its first snapshot's entry.
    fn edited(offset: usize, bytes: &[u8]) -> Vec<u8> {
        let start = Header::read(SNAPSHOTS).unwrap().snapshots_offset().to_u64();
        let start = usize::try_from(start).unwrap() + offset;
        let mut image = SNAPSHOTS.to_vec();
        image[start..start + bytes.len()].copy_from_slice(bytes);
        image
    }

    #[test]
    fn qemus_table_is_read() {
        let header = Header::read(SNAPSHOTS).unwrap();
        let table = table(SNAPSHOTS).unwrap();
        assert_eq!(table.len() as u64, u64::from(header.nb_snapshots()));
        for (index, snapshot) in table.iter().enumerate() {
            assert_eq!(snapshot.id, (index + 1).to_string().as_bytes());
            assert_eq!(snapshot.disk_size, Some(header.virtual_size()));
            assert_eq!(snapshot.vm_state_size, 0);
            assert_eq!(snapshot.l1_size, header.l1_size());
            assert!(snapshot.date_sec > 1_500_000_000);
            for name in [&snapshot.id, &snapshot.name] {
                assert_eq!(Snapshot::find(SNAPSHOTS, &header, name).unwrap(), *snapshot);
            }
        }
    }

    #[test]
    fn an_id_goes_before_a_name() {
        let header = Header::read(SNAPSHOTS).unwrap();
        let extra = table(SNAPSHOTS).unwrap().first().and_then(|s| s.icount).map_or(16, |_| 24);
        // The first snapshot is called what the second one's id is.
        let image = edited(40 + extra + 1, b"2");
        let image = { image };
        let mut cut = image.clone();
        let start = usize::try_from(header.snapshots_offset().to_u64()).unwrap();
        cut[start + 14..start + 16].copy_from_slice(&1_u16.to_be_bytes());
        // Its entry is shorter now; what follows is no longer where the table says, so one is left.
        cut[60..64].copy_from_slice(&1_u32.to_be_bytes());
        let one = Header::read(&cut[..]).unwrap();
        assert_eq!(Snapshot::find(&cut[..], &one, b"2").unwrap().id, b"1");
        let found = Snapshot::find(SNAPSHOTS, &header, b"2").unwrap();
        assert_eq!(found.id, b"2");
        let missing = Snapshot::find(SNAPSHOTS, &header, b"no\n").unwrap_err();
        assert!(matches!(missing, Error::Request(RequestError::NoSuchSnapshot { .. })));
        assert!(!missing.to_string().contains('\n'));
    }

    #[test]
    fn each_ceiling_holds_and_each_error_names_its_field() {
        let start = Header::read(SNAPSHOTS).unwrap().snapshots_offset().to_u64();
        let error = |image: &[u8]| match table(image) {
            Err(Error::Corrupt(field)) => (field.field, field.offset - start, field.violation),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            error(&edited(36, &1025_u32.to_be_bytes())),
            ("snapshot's extra_data_size", 36, Violation::SnapshotExtraData)
        );
        // A name that ends past the end of the file.
        let (field, offset, violation) = error(&edited(14, &u16::MAX.to_be_bytes()));
        assert_eq!((field, offset), ("snapshot", 40));
        assert!(matches!(violation, Violation::Truncated { .. }));
    }
}
