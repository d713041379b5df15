use palimpsest_types::{Fork, Oid, RelTag};

use crate::{
    error::{Damage, ResolveError},
    name::QualifiedName,
    rows::{Catalogs, Row},
    source::CatalogSource,
    v15::{
        DATABASE_TABLESPACE, DATABASES, DEFAULT_TABLESPACE, GLOBAL_TABLESPACE, RELATION_FILE,
        RELATION_IS_SHARED, RELATION_KIND, RELATION_SCHEMA, RELATION_TABLESPACE, RELATIONS,
        ROLE_CAN_LOGIN, ROLE_IS_SUPERUSER, ROLES, SCHEMAS, TABLESPACES, has_storage, kind_name,
    },
};

/// Where a database is, as its row in `pg_database` says.
#[derive(Debug, Clone, Copy)]
struct Database {
    oid: Oid,
    /// Where relations are that name no tablespace.
    tablespace: Oid,
}

/// Superusers that are looked at: there are few.
const SUPERUSERS: usize = 1000;

/// The files of a relation, by its name, as of the source's LSN.
///
/// # Errors
/// If there is no such relation then, it has no files, or the catalogs can't be read.
pub async fn resolve<S: CatalogSource>(
    source: &S,
    name: &QualifiedName,
) -> Result<RelTag, ResolveError<S::Error>> {
    let mut catalogs = Catalogs::new(source);
    let database = find_database(&mut catalogs, &name.database).await?;
    let place = (database.tablespace, database.oid);
    let file = catalogs.mapped(place, RELATIONS.oid).await?;
    let file = file.ok_or_else(|| Damage::Unmapped(RELATIONS.name.to_owned()))?;
    let relations = main_fork(database.tablespace, database.oid, file);

    let schema = find_schema(&mut catalogs, database, relations, name).await?;
    let in_schema = |row: &Row| row.number(RELATION_SCHEMA) == schema && row.is_called(&name.table);
    let row = catalogs.find(RELATIONS, relations, in_schema).await?;
    let row = row.ok_or_else(|| ResolveError::NoRelation {
        database: name.database.clone(),
        schema: name.schema.clone(),
        table: name.table.clone(),
    })?;
    let kind = row.byte(RELATION_KIND);
    if !has_storage(kind) {
        return Err(ResolveError::NoStorage {
            table: name.table.clone(),
            kind: kind_name(kind),
        });
    }
    let rel = files_of(&catalogs, database, &row, &name.table).await?;
    Ok(rel.with_fork(name.fork))
}

/// The object id of a database, by its name, as of the source's LSN.
///
/// # Errors
/// If there is no such database then, or the catalogs can't be read.
pub async fn resolve_database<S: CatalogSource>(
    source: &S,
    name: &str,
) -> Result<Oid, ResolveError<S::Error>> {
    let database = find_database(&mut Catalogs::new(source), name).await?;
    Ok(database.oid)
}

/// The object ids of the tablespaces, without the two that every cluster has, as of the source's LSN: at most this
/// many.
///
/// # Errors
/// If the catalogs can't be read.
pub async fn tablespaces<S: CatalogSource>(
    source: &S,
    most: usize,
) -> Result<Vec<Oid>, ResolveError<S::Error>> {
    let mut catalogs = Catalogs::new(source);
    let file = catalogs
        .mapped((GLOBAL_TABLESPACE, 0), TABLESPACES.oid)
        .await?;
    let file = file.ok_or_else(|| Damage::Unmapped(TABLESPACES.name.to_owned()))?;
    let rel = main_fork(GLOBAL_TABLESPACE, 0, file);
    let wanted = |row: &Row| ![DEFAULT_TABLESPACE, GLOBAL_TABLESPACE].contains(&row.oid());
    let rows = catalogs.seen(TABLESPACES, rel, wanted, most).await?;
    Ok(rows.iter().map(Row::oid).collect())
}

/// The name of a superuser who may log in, as of the source's LSN: of the one that was there first, if there are
/// several.
///
/// # Errors
/// If the catalogs can't be read.
pub async fn superuser<S: CatalogSource>(
    source: &S,
) -> Result<Option<String>, ResolveError<S::Error>> {
    let mut catalogs = Catalogs::new(source);
    let file = catalogs.mapped((GLOBAL_TABLESPACE, 0), ROLES.oid).await?;
    let file = file.ok_or_else(|| Damage::Unmapped(ROLES.name.to_owned()))?;
    let rel = main_fork(GLOBAL_TABLESPACE, 0, file);
    let is = |row: &Row, at| row.byte(at) != 0;
    let wanted = |row: &Row| is(row, ROLE_IS_SUPERUSER) && is(row, ROLE_CAN_LOGIN);
    let mut rows = catalogs.seen(ROLES, rel, wanted, SUPERUSERS).await?;
    rows.sort_by_key(Row::oid);
    Ok(rows.iter().find_map(Row::name).map(str::to_owned))
}

async fn find_database<S: CatalogSource>(
    catalogs: &mut Catalogs<'_, S>,
    name: &str,
) -> Result<Database, ResolveError<S::Error>> {
    let shared = (GLOBAL_TABLESPACE, 0);
    let file = catalogs.mapped(shared, DATABASES.oid).await?;
    let file = file.ok_or_else(|| Damage::Unmapped(DATABASES.name.to_owned()))?;
    let databases = main_fork(GLOBAL_TABLESPACE, 0, file);
    let called = |row: &Row| row.is_called(name);
    let row = catalogs.find(DATABASES, databases, called).await?;
    let row = row.ok_or_else(|| ResolveError::NoDatabase(name.to_owned()))?;
    Ok(Database {
        oid: row.oid(),
        tablespace: row.number(DATABASE_TABLESPACE),
    })
}

/// The object id of the schema. Its catalog is not mapped: its own row in `pg_class` says where it is.
async fn find_schema<S: CatalogSource>(
    catalogs: &mut Catalogs<'_, S>,
    database: Database,
    relations: RelTag,
    name: &QualifiedName,
) -> Result<Oid, ResolveError<S::Error>> {
    let is_schemas = |row: &Row| row.oid() == SCHEMAS.oid;
    let row = catalogs.find(RELATIONS, relations, is_schemas).await?;
    let row = row.ok_or_else(|| Damage::Unmapped(SCHEMAS.name.to_owned()))?;
    let schemas = files_of(catalogs, database, &row, SCHEMAS.name).await?;
    let called = |row: &Row| row.is_called(&name.schema);
    let row = catalogs.find(SCHEMAS, schemas, called).await?;
    let row = row.ok_or_else(|| ResolveError::NoSchema {
        database: name.database.clone(),
        schema: name.schema.clone(),
    })?;
    Ok(row.oid())
}

/// As `RelationInitPhysicalAddr` does (`relcache.c`): no tablespace is the database's, and no file
/// number is in the relation map.
async fn files_of<S: CatalogSource>(
    catalogs: &Catalogs<'_, S>,
    database: Database,
    row: &Row,
    name: &str,
) -> Result<RelTag, ResolveError<S::Error>> {
    let spc = match row.number(RELATION_TABLESPACE) {
        0 => database.tablespace,
        own => own,
    };
    let db = match spc {
        GLOBAL_TABLESPACE => 0,
        _ => database.oid,
    };
    let file = match row.number(RELATION_FILE) {
        0 => {
            let map = match row.byte(RELATION_IS_SHARED) {
                0 => (database.tablespace, database.oid),
                _ => (GLOBAL_TABLESPACE, 0),
            };
            let mapped = catalogs.mapped(map, row.oid()).await?;
            mapped.ok_or_else(|| Damage::Unmapped(name.to_owned()))?
        }
        own => own,
    };
    Ok(main_fork(spc, db, file))
}

const fn main_fork(spc: Oid, db: Oid, rel: Oid) -> RelTag {
    RelTag {
        spc,
        db,
        rel,
        fork: Fork::Main,
    }
}

#[cfg(test)]
mod tests;
