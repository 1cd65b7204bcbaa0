"""What the tests of a study and of its report share."""

PAPER = [
    *(f"music2vec-{x}" for x in ("vanilla", "800k", "crop5s", "prob50", "prob80")),
    *(f"music2vec-{x}" for x in ("span5", "span15", "target12")),
    *(f"musichubert-{x}" for x in ("k500", "k500_mfcc60", "k2000_iter1", "k2000_iter2")),
]
