"""What the clock registers of an MC146818 mean, in all four formats, and when its alarm matches.

Source: Motorola MC146818A data sheet, "Time, calendar, and alarm locations" and table 3.

A time of day is one number here: the seconds since 1 January 1970, as the registers show it.
"""

from __future__ import annotations

from pykvm.typed import TYPE_CHECKING
from pykvm.values.frozen import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["CENTURY", "DAY", "Alarm", "Format", "civil", "days", "until_alarm"]

DAY = 86_400  # seconds

# The registers.
SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM = range(6)
WEEKDAY, DAY_OF_MONTH, MONTH, YEAR = range(6, 10)

#: Not the chip's: the byte of its RAM where PCs keep the century.
CENTURY = 0x32

PM = 0x80
#: An alarm byte of this or more matches anything.
DONT_CARE = 0xC0

# Years are taken to begin in March, so that the leap day is the last: then month m begins on day
# (153 m + 2) / 5.
_ERA = 146_097  # days in 400 years
_MARCH_OF_0 = 719_468  # days from 1 March of year 0 to 1 January 1970


def days(year: int, month: int, day: int) -> int:
    """Days from 1 January 1970 to a date of the Gregorian calendar.

    A month or a day that does not exist carries over, as in mktime(3).

    >>> days(1970, 1, 1), days(2024, 2, 31) - days(2024, 3, 2), days(2023, 14, 1) - days(2024, 2, 1)
    (0, 0, 0)
    """
    year, month = year + (month - 3) // 12, (month - 3) % 12
    leap_days = year // 4 - year // 100 + year // 400
    return 365 * year + leap_days + (153 * month + 2) // 5 + day - 1 - _MARCH_OF_0


def civil(number: int) -> tuple[int, int, int]:
    """The year, month and day that are `number` days after 1 January 1970.

    >>> civil(19_782)
    (2024, 2, 29)
    """
    era, day = divmod(number + _MARCH_OF_0, _ERA)
    # Less the leap days that came before, every year of the era has 365 days.
    year = (day - day // 1460 + day // 36_524 - day // (_ERA - 1)) // 365
    day -= 365 * year + year // 4 - year // 100
    month = (5 * day + 2) // 153
    return (
        year + 400 * era + (month >= 10),
        month - 9 if month >= 10 else month + 3,
        day - (153 * month + 2) // 5 + 1,
    )


class Alarm(NamedTuple):
    """When the alarm rings: None is any hour, minute or second."""

    hour: int | None
    minute: int | None
    second: int | None

    def __str__(self) -> str:
        return ":".join("xx" if part is None else f"{part:02}" for part in self)


class Format(NamedTuple):
    """How register B says that numbers are written: `binary` or BCD, with 24 or 12 `hours`.

    Every byte has a meaning: digits above 9 are worth what they say.

    >>> Format(binary=False, hours=12).hour_of(0x92), Format(binary=True, hours=24).number(0x12)
    (12, 18)
    """

    binary: bool
    hours: int

    def number(self, byte: int) -> int:
        """What a byte stands for."""
        return byte if self.binary else 10 * (byte >> 4) + (byte & 15)

    def byte(self, number: int) -> int:
        """The byte for a number; what there is no room for is cut off."""
        return number & 0xFF if self.binary else int(str(number % 100), 16)

    def hour_of(self, byte: int) -> int:
        """The hour, 0 to 23, of an hours register."""
        if self.hours == 24:
            return self.number(byte)
        return self.number(byte & ~PM) % 12 + (12 if byte & PM else 0)

    def hour_byte(self, hour: int) -> int:
        """The hours register for an hour, 0 to 23."""
        if self.hours == 24:
            return self.byte(hour)
        return self.byte((hour + 11) % 12 + 1) | (PM if hour >= 12 else 0)

    def time(self, registers: Sequence[int]) -> int:
        """The time that the registers show; fields out of range carry over."""
        year = 100 * self.number(registers[CENTURY]) + self.number(registers[YEAR])
        date = days(year, self.number(registers[MONTH]), self.number(registers[DAY_OF_MONTH]))
        clock = 60 * self.hour_of(registers[HOURS]) + self.number(registers[MINUTES])
        return DAY * date + 60 * clock + self.number(registers[SECONDS])

    def registers(self, time: int) -> Iterable[tuple[int, int]]:
        """Register and byte, for each register that shows `time`, but for the day of the week."""
        date, second = divmod(time, DAY)
        year, month, day = civil(date)
        return (
            (SECONDS, self.byte(second % 60)),
            (MINUTES, self.byte(second // 60 % 60)),
            (HOURS, self.hour_byte(second // 3600)),
            (DAY_OF_MONTH, self.byte(day)),
            (MONTH, self.byte(month)),
            (YEAR, self.byte(year % 100)),
            (CENTURY, self.byte(year // 100)),
        )

    def alarm(self, registers: Sequence[int]) -> Alarm | None:
        """When the alarm rings; None if never, as the clock never shows those bytes."""
        hour, minute, second = (registers[at] for at in (HOURS_ALARM, MINUTES_ALARM, SECONDS_ALARM))
        alarm = Alarm(
            None if hour >= DONT_CARE else self.hour_of(hour),
            None if minute >= DONT_CARE else self.number(minute),
            None if second >= DONT_CARE else self.number(second),
        )
        possible = (
            (alarm.hour is None or (alarm.hour < 24 and self.hour_byte(alarm.hour) == hour))
            and (alarm.minute is None or (alarm.minute < 60 and self.byte(alarm.minute) == minute))
            and (alarm.second is None or (alarm.second < 60 and self.byte(alarm.second) == second))
        )
        return alarm if possible else None


def until_alarm(time: int, alarm: Alarm) -> int:
    """How many seconds after `time` the alarm rings next: 1 to a day.

    >>> until_alarm(12 * 3600, Alarm(12, None, 30)), until_alarm(12 * 3600, Alarm(12, 0, 0))
    (30, 86400)
    """
    second = time % DAY
    found = _first(second + 1, alarm)
    if found is None:
        found = _first(0, alarm)
        assert found is not None
        found += DAY
    return found - second


def _first(second: int, alarm: Alarm) -> int | None:
    """The first second of the day, from `second` on, that the alarm matches."""
    for hour in range(24) if alarm.hour is None else (alarm.hour,):
        if 3600 * hour + 3599 < second:
            continue
        for minute in range(60) if alarm.minute is None else (alarm.minute,):
            start = 3600 * hour + 60 * minute
            if start + 59 < second:
                continue
            at = max(second, start) if alarm.second is None else start + alarm.second
            if at >= second:
                return at
    return None
