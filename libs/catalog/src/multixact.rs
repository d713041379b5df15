//! Which member of a multixact deleted or updated a row (`MultiXactIdGetUpdateXid`).

use palimpsest_types::SlruKind;
use palimpsest_wal::{
    MultiXactId, MultiXactMember, Xid, member_place, next_multixact, offset_place,
};

use crate::{error::ResolveError, heap::u32_at, rows::Catalogs, source::CatalogSource};

/// More members than any multixact has: each is a transaction or subtransaction that was running
/// when another joined, and joining copies them all.
const MAX_MEMBERS: u32 = 1 << 16;

impl<S: CatalogSource> Catalogs<'_, S> {
    /// The member that deleted or updated the row, of which there can be one only; the inner `None`
    /// if all of them just locked it. The outer `None` if pages that would tell are not there.
    pub(crate) async fn updater(
        &mut self,
        id: MultiXactId,
    ) -> Result<Option<Option<Xid>>, ResolveError<S::Error>> {
        let start = self.offset(id).await?;
        let end = self.offset(next_multixact(id)).await?;
        let (Some(start), Some(end)) = (start, end) else {
            return Ok(None);
        };
        let count = end.wrapping_sub(start);
        if !(1..=MAX_MEMBERS).contains(&count) {
            return Ok(None);
        }
        for index in 0..count {
            let Some(member) = self.member(start.wrapping_add(index)).await? else {
                return Ok(None);
            };
            // No transaction is at offset 0, which members that wrap around leave out.
            if member.xid != 0 && member.status >= MultiXactMember::FIRST_UPDATE {
                return Ok(Some(Some(member.xid)));
            }
        }
        Ok(Some(None))
    }

    /// Where the members of a multixact begin; `None` if that is not kept.
    async fn offset(&mut self, id: MultiXactId) -> Result<Option<u32>, ResolveError<S::Error>> {
        let (page, at) = offset_place(id);
        let page = self.slru_page(SlruKind::MultiXactOffsets, page).await?;
        let offset = page.and_then(|page| u32_at(&page, at));
        Ok(offset.filter(|offset| *offset != 0))
    }

    async fn member(
        &mut self,
        offset: u32,
    ) -> Result<Option<MultiXactMember>, ResolveError<S::Error>> {
        let place = member_place(offset);
        let page = self
            .slru_page(SlruKind::MultiXactMembers, place.page)
            .await?;
        Ok(page.and_then(|page| {
            let xid = u32_at(&page, place.xid)?;
            let status = *page.get(place.status)?;
            Some(MultiXactMember { xid, status })
        }))
    }
}
