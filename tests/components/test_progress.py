"""The progress bar of long work."""

from components.progress import track


def test_items_come_in_order_and_one_at_a_time_with_or_without_a_bar(capsys):
    for shown in (False, True):
        taken = []
        watched = track((taken.append(n) or n for n in range(3)), 3, "rows", shown)
        assert next(watched) == 0 and taken == [0]
        assert list(watched) == [1, 2]
        assert shown or not capsys.readouterr().out
