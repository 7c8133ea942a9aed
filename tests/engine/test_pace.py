"""How large steps are: long for prompts alone, short beside answers, smaller for a while where memory was too small."""

from mmvl.engine.pace import PATIENCE, SECONDS, Pace


def settled(pace, seconds_a_token, steps=40, fixed=0.0):
    """The size beside answers after so many steps on a machine that takes so long."""
    for _ in range(steps):
        tokens = pace.tokens(1)
        pace.took(tokens, 1, fixed + tokens * seconds_a_token)
    return pace.tokens(1)


def test_prompts_alone_get_long_steps_and_beside_answers_short_ones():
    pace = Pace(32768, least=512)
    assert pace.tokens(0) == 32768
    # an H200 with 8 layers; the same with 80; a faster machine
    assert settled(pace, 17e-6) == 4096 and pace.tokens(0) == 32768
    assert settled(Pace(32768, least=512), 180e-6) == 512
    assert settled(Pace(32768, least=512), 1e-6) == 32767


def test_many_answers_leave_prompts_their_share():
    pace = Pace(2048, least=128, first=256)
    assert settled(pace, 0.0, fixed=1.0) == 128 == pace.tokens(100)
    assert (pace.tokens(0), pace.tokens(2000), pace.tokens(4000)) == (2048, 48, 1)


def test_the_size_settles():
    for seconds_a_token in (1e-6, 3e-6, 1e-5, 3e-5, 1e-4):
        for fixed in (0.0, 0.02):
            pace = Pace(32768, least=64)
            size = settled(pace, seconds_a_token, fixed=fixed)
            assert {settled(pace, seconds_a_token, 1, fixed) for _ in range(20)} == {size}
            assert size == 64 or fixed + size * seconds_a_token <= 1.3 * SECONDS


def test_one_slow_step_or_a_small_one_changes_nothing():
    pace = Pace(8192)
    pace.took(2048, 1, 9.0)
    assert pace.tokens(1) == 2048
    pace.took(2048, 1, 0.08)
    pace.took(2048, 1, 9.0)
    for _ in range(9):
        pace.took(9, 8, 0.001)  # a short prompt's
        pace.took(2048, 0, 0.001)  # nobody was waiting
        pace.took(0, 2048, 0.001)  # nobody else was there
    assert pace.tokens(1) == 2048


def test_after_a_fault_the_steps_are_smaller_for_a_while():
    pace = Pace(1024)
    pace.too_large([1000, 1], 64)
    assert (pace.tokens(0), pace.max_running) == (512, None)
    pace.too_large([1] * 9, 64)
    assert (pace.tokens(0), pace.max_running) == (256, 4)

    def after(steps):
        for _ in range(steps):
            pace.took(9, 9, 0.01)
        return pace.tokens(0), pace.max_running

    assert after(4 * PATIENCE - 1) == (256, 4)
    assert after(1) == (512, 8)
    assert after(4 * PATIENCE) == (1024, 16)
    assert after(40 * PATIENCE) == (1024, None)
    for _ in range(20):
        pace.too_large([9], 64)
    assert pace.tokens(0) == 64
