//! The database of the revision index: how it is opened and what is in it.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};

/// "bcky": tells our file from another program's.
const APPLICATION_ID: i32 = 0x6263_6b79;
const VERSION: i32 = 3;

const TABLES: &str = "
    CREATE TABLE manifest (
        job TEXT NOT NULL,
        revision TEXT NOT NULL,
        inode INTEGER NOT NULL,
        length INTEGER NOT NULL,
        mtime_nanos INTEGER NOT NULL,
        ctime_nanos INTEGER NOT NULL,
        body TEXT NOT NULL,
        proof BLOB NOT NULL,
        PRIMARY KEY (job, revision)
    ) WITHOUT ROWID;
    CREATE TABLE memo (
        job TEXT PRIMARY KEY,
        inode INTEGER NOT NULL,
        mtime_nanos INTEGER NOT NULL,
        text TEXT NOT NULL,
        proof BLOB NOT NULL
    ) WITHOUT ROWID;
";

/// Opens the database for writing, making it when it is missing or of another version.
pub(super) fn open(path: &Path) -> rusqlite::Result<Connection> {
    let mut connection = Connection::open(path)?;
    connection.busy_timeout(Duration::from_secs(2))?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    // A view may lose its last rows in a power loss: they are noticed and read again.
    connection.pragma_update(None, "synchronous", "normal")?;
    let pragma = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    if (pragma("application_id")?, pragma("user_version")?) != (APPLICATION_ID, VERSION) {
        create(&mut connection)?;
    }
    Ok(connection)
}

fn create(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    transaction.execute_batch("DROP TABLE IF EXISTS manifest; DROP TABLE IF EXISTS memo")?;
    transaction.execute_batch(TABLES)?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()
}

/// Whether the file is no usable database, as opposed to locked, full or read-only.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    match error.sqlite_error_code() {
        Some(code) => {
            matches!(code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown)
        }
        None => matches!(
            error,
            rusqlite::Error::InvalidColumnType(..) | rusqlite::Error::FromSqlConversionFailure(..)
        ),
    }
}
