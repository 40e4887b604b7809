"""What the terminal shows of warnings."""

import warnings

from runs.run_log import _plainly


def test_a_warning_of_ours_is_its_sentence_and_others_keep_their_place():
    ours = _plainly("two images are grey", UserWarning, __file__, 3)
    theirs = _plainly("old", DeprecationWarning, warnings.__file__, 3)
    assert ours == "warning: two images are grey"
    assert warnings.__file__ in theirs and "DeprecationWarning: old" in theirs
