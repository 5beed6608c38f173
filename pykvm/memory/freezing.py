"""Freeze guest memory, and thaw it: copy back what changed."""

from __future__ import annotations

from pykvm._core import lib
from pykvm.errors import StateError, exhausted
from pykvm.memory.pages import PAGE_SIZE
from pykvm.memory.regions import ADDRESS_LIMIT, RegionMap, free_slot, merge_log, set_slot
from pykvm.typed import TYPE_CHECKING
from pykvm.values.checks import flag, wrong

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import ModuleType

    from pykvm.memory.image import FrozenRegion, MemoryImage
    from pykvm.memory.regions import Region

__all__ = ["Freezing"]


class Freezing(RegionMap):
    """Regions that can be frozen and thawed.

    From the first freeze on every page is either marked or holds what it held when it was last
    frozen or thawed.  Marks are made by what stores into guest memory, in this process by the call
    that stores (`Pages`), for the guest by KVM's dirty log.  Each step below keeps that true,
    whatever exception comes between any two instructions.
    """

    def __init__(self, *, overcommit: bool = False) -> None:
        super().__init__(overcommit=overcommit)
        # Whether KVM may use what it derived from page tables that were thawed since.
        self._stale = False

    def freeze(self, parent: MemoryImage | None = None) -> MemoryImage:
        """What is in every region now, ROM too.

        No vCPU may run meanwhile.  The first call copies all pages that are not zero, and lets
        KVM log what the guest writes from then on; later ones copy what was written since.  Pages
        that are as they were then are shared with the image before.

        `parent` is for memory that was never frozen or thawed: pages that are equal in it are
        shared with it.

        Bytes of shared files are part of the image.  Raises ResourceError, KVMError, and nothing
        is changed.
        """
        images = _images()
        if parent is not None and not isinstance(parent, images.MemoryImage):
            raise wrong("parent", "a MemoryImage or None", parent)
        with self._lock:
            self._check_open()
            self._settle()
            is_first = not self._logging
            self._start_log()
            if is_first and parent is not None:
                self._share(parent)
            image: MemoryImage = images.MemoryImage(map(self._freeze, self.regions))
            return image

    def thaw(self, image: MemoryImage, *, flush: bool = False) -> int:
        """Make memory what it was in `image`, regions that came and went since included.

        Returns how many pages were copied.  No vCPU may run meanwhile.  `image` is any image, of
        this memory or of another: for one of this memory it costs what changed since and what
        differs between that image and the last one.

        `flush` says that this host's KVM keeps translations when page tables are rewritten (the
        quirk stale-mappings); it is made to forget them if a page was copied.

        An exception leaves memory that is neither; another call makes all well.  Raises
        HostError, KVMError, BusConflict if a region cannot be made anew.
        """
        if not isinstance(image, _images().MemoryImage):
            raise wrong("image", "a MemoryImage", image)
        flag("flush", flush)
        with self._lock:
            self._check_open()
            self._settle()
            self._start_log()
            self._lay_out(image)
            stale = self._stale
            # Until it is known that nothing was copied, or KVM has forgotten what it knew.
            self._stale = stale or flush
            copied = sum(
                self._thaw(region, frozen)
                for region, frozen in zip(self.regions, image.regions, strict=True)
            )
            if flush:
                if (copied or stale) and self._vm is not None:
                    self._forget_translations()
                self._stale = False
            return copied

    def mark_dirty(self, address: int, length: int) -> None:
        """Count `length` bytes at `address` as written.

        For what pykvm cannot see: stores of your own through `Region.host_address`, after them.
        Raises MemoryRangeError.
        """
        for mapping, offset, size in self._parts(address, length, rom=True):
            mapping.pages.mark(offset, size)

    def adopt(self, regions: Iterable[Region]) -> None:
        """Be these regions, which are clean; for `MemoryImage.attach`, on a memory without any."""
        with self._lock:
            if self.regions:
                raise StateError("this guest memory has regions already")
            for region in regions:
                self._set_regions([*self.regions, region])
            self._logging = True

    def _start_log(self) -> None:
        """Let KVM log what the guest writes; what it wrote before is marked."""
        if self._logging:
            return
        if self._vm is not None:
            for region in self.regions:
                set_slot(self._vm, region, log=True)
        for region in self.regions:
            region.mapping.mark_touched()
        self._logging = True

    def _collect(self, region: Region) -> bool:
        """Mark what was written and not marked yet; whether more was marked than that."""
        if self._vm is not None:
            merge_log(self._vm, region)
        return region.mapping.mark_unseen()

    def _share(self, parent: MemoryImage) -> None:
        known = {frozen.key: frozen for frozen in parent.regions}
        for region in self.regions:
            frozen = known.get(region.key)
            if frozen is not None:
                lib.pykvm_relate(region.mapping.pages.core, frozen.content)

    def _freeze(self, region: Region) -> FrozenRegion:
        self._collect(region)
        content = region.mapping.pages.freeze()
        name, start, size, kind, backing, _, _, shared, huge_pages = region
        frozen: FrozenRegion = _images().FrozenRegion(
            name, start, size, kind, backing, shared, huge_pages, content
        )
        return frozen

    def _thaw(self, region: Region, frozen: FrozenRegion) -> int:
        compare = self._collect(region)
        return int(lib.pykvm_thaw(region.mapping.pages.core, frozen.content, compare))

    def _lay_out(self, image: MemoryImage) -> None:
        """Have the regions of `image`, and no other."""
        if [region.key for region in self.regions] == [frozen.key for frozen in image.regions]:
            return
        wanted = {frozen.key for frozen in image.regions}
        for region in self.regions:
            if region.key not in wanted:
                self.remove(region)
        there = {region.key for region in self.regions}
        for frozen in image.regions:
            if frozen.key not in there:
                self._add(
                    frozen.start,
                    frozen.size,
                    frozen.name,
                    frozen.kind,
                    frozen.backing,
                    shared=frozen.shared,
                    huge_pages=frozen.huge_pages,
                )

    def _forget_translations(self) -> None:
        """Make KVM drop every translation of this VM, those that page tables led to included.

        Which pages the guest has used as page tables cannot be known: it may have left them for
        others and come back, and KVM keeps what it derived from them.  KVM drops all translations
        of all slots when any slot is deleted (api.rst, KVM_X86_QUIRK_SLOT_ZAP_ALL, which is on
        unless disabled); a slot of one page is the cheapest.
        """
        assert self._vm is not None
        regions = self.regions
        if not regions:
            return
        slot, host = free_slot(regions), regions[0].host_address
        # Above the addresses at which KVM has slots of its own.
        start = max(regions[-1].end, 1 << 32)
        if start >= ADDRESS_LIMIT:
            start = _gap(regions)
        self._vm.set_user_memory_region(slot, 0, start, PAGE_SIZE, host)
        self._vm.set_user_memory_region(slot, 0, start, 0, host)


_loaded: list[ModuleType] = []


def _images() -> ModuleType:
    """`pykvm.memory.image`, which only a program that freezes memory loads."""
    if not _loaded:
        with exhausted("cannot freeze guest memory"):
            from pykvm.memory import image
        _loaded.append(image)
    return _loaded[0]


def _gap(regions: Iterable[Region]) -> int:
    """An address without memory."""
    end = 0
    for region in regions:
        if end < region.start:
            break
        end = region.end
    return end
