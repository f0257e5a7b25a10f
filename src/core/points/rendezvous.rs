//! Rendezvous hashing: every worker computes the same owner of a VM from the same members, and a member that
//! leaves or joins moves only its own share.

use crate::ids::VmId;

/// The member that works on `vm`; `None` without members. The order of members does not matter.
#[must_use]
pub fn owner<'a>(vm: VmId, members: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    members.into_iter().max_by_key(|member| (weight(vm, member), *member))
}

fn weight(vm: VmId, member: &str) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(vm.0.as_bytes());
    hasher.update(member.as_bytes());
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn vms() -> impl Iterator<Item = VmId> {
        (1..=3000_u128).map(|n| VmId(Uuid::from_u128(n)))
    }

    #[test]
    fn a_worker_that_leaves_moves_only_its_own_vms() {
        let (mut moved, mut of_b) = (0, 0);
        for vm in vms() {
            let before = owner(vm, ["a", "b", "c"]).unwrap();
            let after = owner(vm, ["c", "a"]).unwrap();
            of_b += usize::from(before == "b");
            moved += usize::from(before != after);
            assert!(before == "b" || before == after);
        }
        assert_eq!(moved, of_b);
        assert!((800..1200).contains(&of_b), "a third each, more or less: {of_b}");
        assert_eq!(owner(VmId(Uuid::nil()), []), None);
    }
}
