"""The TSC model: offset and ratio, stops and warps, IA32_TSC and IA32_TSC_ADJUST."""

from __future__ import annotations

import pytest
from clock.fake_host import Host
from hypothesis import given
from hypothesis import strategies as st

from pykvm.clock import POLICIES, Clock
from pykvm.clock.tsc import signed
from pykvm.errors import ConfigError, HostError

SECOND = 1_000_000_000
LIMIT = 1 << 64
U64 = st.integers(0, LIMIT - 1)


def ticks(host: Host, ns: int) -> int:
    return ns * host.khz // 1_000_000


@pytest.mark.parametrize("policy", POLICIES)
def test_it_counts_from_0_as_at_reset(policy: str) -> None:
    host = Host()
    clock = host.clock(policy)
    assert clock.tsc() == 0
    assert clock.tsc_khz == host.khz
    assert clock.tsc_offset == -host.read_tsc()
    assert clock.vcpu_tsc_offset(0) == -host.read_tsc() % LIMIT


def test_realtime_never_moves_the_offset() -> None:
    host = Host()
    clock = host.clock("realtime")
    offset = clock.tsc_offset
    clock.start()
    host.now += SECOND
    clock.stop()
    host.now += 10 * SECOND
    clock.start()
    assert clock.tsc_offset == offset
    assert clock.tsc() == host.read_tsc() + offset


@pytest.mark.parametrize("policy", ["paused", "warp"])
def test_a_stop_is_hidden_from_it_to_the_tick(policy: str) -> None:
    host = Host()
    clock = host.clock(policy)
    clock.start()
    host.now += SECOND
    seen = clock.tsc()
    clock.stop()
    host.now += 10 * SECOND
    assert clock.tsc() == seen
    assert clock.tsc_offset == seen - host.read_tsc(), "as a start now would have it"
    clock.start()
    assert clock.tsc() == seen
    assert clock.tsc_offset == seen - host.read_tsc()
    host.now += SECOND
    assert abs(clock.tsc() - seen - ticks(host, SECOND)) <= 1


@pytest.mark.parametrize("running", [False, True])
def test_it_warps_with_guest_time(running: bool) -> None:
    host = Host()
    clock = host.clock("warp")
    if running:
        clock.start()
    clock.warp_to(3_600 * SECOND)
    assert clock.tsc() == ticks(host, 3_600 * SECOND)
    clock.start()
    assert clock.tsc_offset == clock.tsc() - host.read_tsc()


def test_many_small_warps_lose_no_tick() -> None:
    host = Host(khz=1_500)  # 1.5 ticks a microsecond
    clock = host.clock("warp")
    for step in range(1, 1_001):
        clock.warp_to(step * 1_001)
    assert clock.tsc() == 1_001_000 * 1_500 // 1_000_000


def test_the_offset_can_be_set() -> None:
    host = Host()
    clock = host.clock("realtime")
    clock.tsc_offset = -5
    assert clock.tsc() == host.read_tsc() - 5
    assert (clock.tsc_offset, clock.vcpu_tsc_offset(1)) == (-5, LIMIT - 5)


def test_the_offset_can_be_set_while_stopped() -> None:
    host = Host()
    clock = host.clock("paused")
    clock.tsc_offset = 1_000
    assert clock.tsc() == host.read_tsc() + 1_000
    clock.start()
    assert clock.tsc_offset == 1_000


def test_another_frequency_scales_the_hosts_tsc() -> None:
    host = Host(khz=3_000_000)
    clock = Clock(
        tsc_khz=1_000_000, host_now=host.read, host_tsc=host.read_tsc, host_tsc_khz=3_000_000
    )
    host.now += SECOND
    assert clock.tsc() == SECOND
    clock.tsc_offset = 0
    assert clock.tsc() == host.read_tsc() // 3
    assert clock.tsc_time(clock.tsc() + 50) == clock.now() + 50


@pytest.mark.parametrize(
    ("asked", "hosts", "khz"), [(None, None, 1_000_000), (7, None, 7), (None, 9, 9), (7, 9, 7)]
)
def test_without_a_host_tsc_it_is_made_of_host_time(
    asked: int | None, hosts: int | None, khz: int
) -> None:
    host = Host()
    clock = Clock("paused", host_now=host.read, tsc_khz=asked, host_tsc_khz=hosts)
    clock.start()
    for _ in range(20):
        host.now += 123_456_789
        assert clock.tsc_khz == khz
        assert abs(clock.tsc() - clock.now() * khz // 1_000_000) <= 1
    host.now -= SECOND
    assert abs(clock.tsc() - clock.now() * khz // 1_000_000) <= 1


def test_one_made_of_host_time_is_never_stale() -> None:
    """Each of these looks at the host's clock for itself."""
    host = Host()
    clock = Clock(host_now=host.read)
    host.now += 100
    clock.write_tsc(1, 0)
    assert clock.tsc_adjust(1) == LIMIT - 100
    host.now += 100
    clock.tsc_offset = 7 - host.now
    assert clock.tsc() == 7
    host.now += 100
    clock.reset_tsc()
    assert clock.tsc() == 0
    host.now += 100
    assert clock.tsc_time(150) == 450
    clock = Clock("paused", host_now=host.read)
    host.now += 100
    assert clock.tsc_offset == -host.now
    host.now += 100
    assert clock.vcpu_tsc_offset(0) == -host.now % LIMIT


@pytest.mark.parametrize(("khz", "hosts"), [(0, 1), (-1, 1), (1, 0), (1, -1)])
def test_a_frequency_is_positive(khz: int, hosts: int) -> None:
    with pytest.raises(ConfigError, match=f"khz is an integer from 1 on, not {min(khz, hosts)}"):
        Clock(host_tsc=lambda: 0, tsc_khz=khz, host_tsc_khz=hosts)
    Clock(host_tsc=lambda: 0, tsc_khz=1, host_tsc_khz=1)


def test_a_host_tsc_comes_with_its_frequency() -> None:
    with pytest.raises(ConfigError, match="host_tsc_khz"):
        Clock(host_tsc=lambda: 0)


class TestNotMovable:
    """Where guests read the host's TSC whatever KVM is told, the model says so."""

    @pytest.mark.parametrize("policy", POLICIES)
    def test_the_guests_tsc_is_the_hosts(self, policy: str) -> None:
        host = Host()
        clock = host.clock(policy, movable=False)
        assert not clock.tsc_movable
        clock.start()
        host.now += 30
        clock.stop()
        host.now += SECOND
        if policy == "warp":
            clock.warp_to(SECOND)
        assert clock.tsc() == host.read_tsc()
        assert clock.tsc_offset == clock.vcpu_tsc_offset(0) == 0

    def test_asking_for_an_offset_is_an_error(self) -> None:
        clock = Host().clock(movable=False)
        with pytest.raises(HostError, match="cannot be offset by -3"):
            clock.tsc_offset = -3
        clock.tsc_offset = 0

    def test_asking_for_another_frequency_is_an_error(self) -> None:
        with pytest.raises(ConfigError, match="cannot run at 1000 kHz"):
            Clock(host_tsc=lambda: 0, host_tsc_khz=2_000, tsc_khz=1_000, tsc_movable=False)

    def test_what_the_guest_writes_is_kept_and_moves_nothing(self) -> None:
        host = Host()
        clock = host.clock(movable=False)
        clock.write_tsc_adjust(0, 500)
        assert (clock.tsc_adjust(0), clock.tsc()) == (500, host.read_tsc())
        clock.write_tsc(0, 0)
        assert clock.tsc() == host.read_tsc()
        assert clock.tsc_adjust(0) == (500 - host.read_tsc()) % LIMIT


class TestWhatTheGuestWrites:
    def test_writing_the_counter_moves_adjust_by_as_much(self) -> None:
        host = Host()
        clock = host.clock()
        host.now += SECOND
        before = clock.tsc()
        clock.write_tsc(1, 1_000)
        assert clock.tsc(cpu=1) == 1_000
        assert clock.tsc_adjust(1) == (1_000 - before) % LIMIT
        assert (clock.tsc(cpu=0), clock.tsc_adjust(0)) == (before, 0), "of one vCPU only"
        assert clock.vcpu_tsc_offset(1) == (clock.tsc_offset + 1_000 - before) % LIMIT
        host.now += SECOND
        assert clock.tsc(cpu=1) - 1_000 == clock.tsc(cpu=0) - before

    def test_writing_adjust_moves_the_counter_by_as_much(self) -> None:
        clock = Host().clock()
        clock.write_tsc_adjust(0, 700)
        assert (clock.tsc(), clock.tsc_adjust(0)) == (700, 700)
        clock.write_tsc_adjust(0, 200)
        assert clock.tsc() == 200
        clock.write_tsc_adjust(0, LIMIT - 1)
        assert clock.tsc() == LIMIT - 1

    @pytest.mark.parametrize("policy", POLICIES)
    def test_they_survive_stops_and_offsets(self, policy: str) -> None:
        host = Host()
        clock = host.clock(policy)
        clock.write_tsc(0, 10_000)
        clock.start()
        clock.stop()
        clock.start()
        assert clock.tsc() == 10_000
        clock.tsc_offset += 5
        assert clock.tsc() == 10_005
        assert clock.tsc_adjust(0) == 10_000

    def test_reset(self) -> None:
        host = Host()
        clock = host.clock("warp")
        clock.warp_to(SECOND)
        clock.write_tsc_adjust(1, 9)
        clock.reset_tsc()
        assert clock.tsc() == clock.tsc(cpu=1) == clock.tsc_adjust(1) == 0
        assert clock.now() == SECOND, "guest time goes on"

    @given(st.lists(st.tuples(st.booleans(), st.integers(0, 2), U64), max_size=12))
    def test_counter_less_adjust_is_one_for_all(self, writes: list[tuple[bool, int, int]]) -> None:
        """The processors' common counter stays what it is, whatever guests write."""
        host = Host()
        clock = host.clock()
        host.now += 12_345
        common = clock.tsc(cpu=9)
        for counter, cpu, value in writes:
            (clock.write_tsc if counter else clock.write_tsc_adjust)(cpu, value)
            read = clock.tsc(cpu=cpu) if counter else clock.tsc_adjust(cpu)
            assert read == value
            for each in range(3):
                assert (clock.tsc(cpu=each) - clock.tsc_adjust(each)) % LIMIT == common
                assert clock.vcpu_tsc_offset(each) == (
                    (clock.tsc(cpu=each) - host.read_tsc()) % LIMIT
                )


class TestTimeOfATsc:
    def test_a_deadline(self) -> None:
        host = Host()
        clock = host.clock()
        host.now += 1_000
        when = clock.tsc_time(clock.tsc() + 2_596_120)
        assert when == 1_000 + 1_000_000
        assert clock.tsc_time(clock.tsc()) == 1_000
        assert clock.tsc_time(0) <= 1_000

    def test_a_deadline_in_the_past_is_past(self) -> None:
        host = Host()
        clock = host.clock()
        host.now += SECOND
        assert clock.tsc_time(1) < clock.now()

    def test_the_largest_deadline_is_not_in_the_past(self) -> None:
        assert Host().clock().tsc_time(LIMIT - 1) > 1 << 62

    @given(ahead=st.integers(-(10**12), 10**18), cpu=st.integers(0, 1), adjust=U64)
    def test_the_counter_has_the_value_then_and_not_before(
        self, ahead: int, cpu: int, adjust: int
    ) -> None:
        host = Host()
        clock = host.clock()
        clock.write_tsc_adjust(1, adjust)
        host.now += 1_000 * SECOND
        value = clock.tsc(cpu=cpu) + ahead
        if not 0 <= value < LIMIT:
            return
        when = clock.tsc_time(value, cpu=cpu)
        if ahead >= 0:
            assert clock.tsc(when, cpu=cpu) - value in range(3)
            assert when == clock.now() or clock.tsc(when - 1, cpu=cpu) < value
        else:
            assert when <= clock.now()


@given(st.integers(-LIMIT, 2 * LIMIT))
def test_signed_is_twos_complement_of_64_bits(value: int) -> None:
    assert -(1 << 63) <= signed(value) < 1 << 63
    assert (signed(value) - value) % LIMIT == 0


def test_a_counter_that_is_kvms_is_read_each_time() -> None:
    """By vCPU, whatever the host's own reads: KVM moves it as it likes (an unstable TSC)."""
    readings = {0: 1_000, 1: 500}
    clock = Clock(
        host_now=lambda: 0,
        host_tsc=lambda: 1 << 60,
        host_tsc_khz=1_000_000,
        tsc_movable=False,
        tsc_of_kvm=readings.__getitem__,
    )
    assert clock.tsc_by_kvm
    assert [clock.tsc(cpu=cpu) for cpu in (0, 1)] == [1_000, 500]
    assert clock.tsc(now=7) == 1_007
    assert clock.tsc_time(1_250) == 250
    readings[0] = 100
    assert clock.tsc() == 100
    assert clock.tsc_time(1_250) == 1_150
