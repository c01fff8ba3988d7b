# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps the recorder's own processor time within a share of one core.

There are three accounts. Each gets its share of the time that passes, and pays what is spent:

- memory: pays for all but the frames. What is left is spent on processes that changed. A process
  that cost more than was left is paid for by the samples that follow.
- samples: pays for what each sample costs in any case. If it is empty, samples are left out.
- frames: a quarter of the budget. If it has what reading all frames costs, they are read.
"""

from __future__ import annotations

BURST_SECONDS = 100.0
"""An account never has more than its share of this time. It begins with that."""
USED_SHARE = 0.95
"""What is used of the budget. The rest pays for the burst, so that an hour is below the budget."""
FRAMES_SHARE = 0.25
SECONDS_PER_BYTE = 0.03 / (1 << 30)
"""A guess of what reading all frames costs, before they were read once."""
MAX_FIRST_FRAMES = 2.0
"""Frames are read in the first sample unless that costs more."""


class Budget:
    """Decides what a sample may cost.

    Args:
        share: Of one core, such as 0.01.
        frames_every: Seconds between readings of all frames: 0 for never, None for as often as the
            budget allows.
        total_bytes: The machine's memory.
    """

    def __init__(
        self, share: float, *, frames_every: float | None = None, total_bytes: int = 0
    ) -> None:
        self._share = share * USED_SHARE
        self._frames_every = frames_every
        self.frames_cost = total_bytes * SECONDS_PER_BYTE
        self._frames = self.frames_cost if self.frames_cost <= MAX_FIRST_FRAMES else 0.0
        self._since_frames: float | None = None
        self._memory = self._samples = BURST_SECONDS * self._rest

    @property
    def _rest(self) -> float:
        by_budget = self._frames_every is None
        return self._share * (1 - FRAMES_SHARE) if by_budget else self._share

    def pass_time(self, seconds: float) -> None:
        """Give each account its share of the time that has passed."""
        cap = BURST_SECONDS * self._rest
        self._memory = min(cap, self._memory + seconds * self._rest)
        self._samples = min(cap, self._samples + seconds * self._rest)
        self._frames = min(self.frames_cost, self._frames + seconds * self._share * FRAMES_SHARE)
        if self._since_frames is not None:
            self._since_frames += seconds

    def allows_sample(self) -> bool:
        """Whether a sample may be taken now."""
        return self._samples >= 0

    def seconds_until_sample(self) -> float:
        """The time until a sample may be taken."""
        return max(0.0, -self._samples / self._rest)

    def seconds_for_memory(self) -> float:
        """The processor time to spend on the memory of processes."""
        return max(0.0, self._memory)

    def allows_frames(self) -> bool:
        """Whether to read all frames now."""
        if self._frames_every is None:
            return self._frames >= self.frames_cost
        if not self._frames_every:
            return False
        return self._since_frames is None or self._since_frames >= self._frames_every

    def without_frames(self) -> None:
        """Never read frames: this user may not. Their share is spent on processes."""
        self._frames_every = 0

    def pay_frames(self, seconds: float) -> None:
        """Pay for a reading of all frames."""
        self._frames = min(self._frames, seconds) - seconds
        self.frames_cost = seconds
        self._since_frames = 0.0

    def pay(self, seconds: float, of_memory: float) -> None:
        """Pay for all but frames.

        Args:
            seconds: The processor time.
            of_memory: The part that was spent on the memory of processes.
        """
        self._memory -= seconds
        self._samples -= seconds - of_memory
