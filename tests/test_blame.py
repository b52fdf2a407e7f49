"""Which blocks are at fault: each alone, or only all together."""

from hypothesis import given
from hypothesis import strategies as st

from tiledse.blame import blamed


@given(st.lists(st.sampled_from("abcdef"), unique=True), st.sets(st.sampled_from("abcdef")), st.booleans())
def test_what_is_left_was_run_and_is_the_same(names, wrong, clash):
    """Blocks of ``wrong`` differ alone; with ``clash`` any two of the others differ together."""
    runs = []

    def run(chosen):
        runs.append(tuple(chosen))
        bad = wrong.intersection(chosen)
        if bad:
            return len(runs), f"{min(bad)} is off"
        return len(runs), "they clash" if clash and len(chosen) > 1 else ""

    figures, refused = blamed(names, run)
    good = [name for name in names if name not in refused]
    assert all(refused[name] == f"{name} is off" for name in wrong.intersection(names))
    if clash and len(set(names) - wrong) > 1:
        assert not good
        assert set(refused) == set(names)
    else:
        assert set(good) == set(names) - wrong
    if good:
        assert runs[figures - 1] == tuple(good)  # the figures are those of the network that is handed out
    else:
        assert figures is None


def test_figures_of_a_run_that_failed_are_not_kept():
    figures, refused = blamed(["a", "b"], lambda chosen: (9.0, "off") if "b" in chosen else (0.5, ""))
    assert (figures, refused) == (0.5, {"b": "off"})
