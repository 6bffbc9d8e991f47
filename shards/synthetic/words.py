"""The vocabulary of made-up tweets: sentiment words, and several hundred neutral ones."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SENTIMENT_WORDS: dict[str, tuple[str, ...]] = {
    "positive": _words(
        """
        love happy wonderful amazing great beautiful fantastic excited proud joy delightful
        awesome brilliant lovely perfect thrilled grateful blessed smile superb charming
        cheerful glorious winning sweet laugh adorable stunning enjoy cosy magnificent bliss
        celebrate inspiring kind fun best fabulous yay hug radiant heartwarming
        """
    ),
    "negative": _words(
        """
        hate sad terrible awful horrible angry disappointed ugly disgusting lonely pain tragic
        miserable worst broken furious heartbroken annoying cruel grim gloomy scared tired sick
        crying ruined hopeless nasty bitter dreadful pathetic jealous rotten lost fail regret
        boring shame worried hurt painful unfair
        """
    ),
    "neutral": _words(
        """
        schedule update report listed agenda notice details standard regular average agreed
        version number meeting measured route timetable form address entry record registered
        published ordinary typical usual summary outline document index reference minutes
        inventory announced catalogue printed posted reminder weekly monthly section draft
        """
    ),
}

PLACES = _words(
    """
    station harbour museum market library stadium bridge airport kitchen office garden park
    school theatre hotel beach square castle tower church cafe corner street village valley
    river island platform gallery studio workshop hall arena campus terminal lobby courtyard
    hillside pier bakery barn depot quarry meadow plaza avenue suburb borough district canal
    """
)
THINGS = _words(
    """
    coffee bicycle camera guitar window ticket letter jacket sandwich train bus car boat phone
    laptop book poster table chair lamp umbrella suitcase painting photo video song album
    concert film episode match team coach player recipe cake bread soup tea juice orange apple
    cat dog bird horse fish rabbit tree flower leaf stone bottle glass plate spoon bag shoe hat
    scarf glove watch clock mirror door wall roof floor fence road map flag drum piano violin
    statue kite balloon candle blanket pillow shelf drawer box basket bucket ladder hammer brush
    pencil notebook magazine newspaper radio printer keyboard screen cable battery engine wheel
    tyre helmet saddle rope anchor
    """
)
PEOPLE = _words(
    """
    brother sister mother father cousin neighbour teacher driver baker doctor nurse artist
    singer drummer pilot sailor farmer plumber waiter student colleague manager captain tourist
    photographer gardener editor writer dancer keeper uncle aunt grandma grandpa friend crowd
    family class crew band
    """
)
TIMES = _words(
    """
    today tonight tomorrow yesterday monday tuesday wednesday thursday friday saturday sunday
    morning afternoon evening midnight noon january february march april june july august
    september october november december spring summer autumn winter
    """
)
VERBS = _words(
    """
    saw found brought carried opened closed moved parked painted washed cooked ordered shared
    watched followed passed visited crossed walked filmed borrowed returned counted folded
    packed sent fixed built sold bought
    """
)
# A few non-ASCII forms: raw files are GB18030, shards UTF-8.
MARKS = ("…", "—", "café", "naïve", "→", "😀", "📷", "½", "北京", "señor", "№", "☕")

# {s} a sentiment word, {t} a second one, {p} place, {o} thing, {w} person, {d} time, {v} verb
TEMPLATES = (
    "{s} {o} at the {p} {d}, so {t}",
    "my {w} {v} a {o} near the {p} {s} {t}",
    "{d} at the {p}: {s} and {t}",
    "the {w} {v} the {o}, {s} {t}",
    "what a {s} {o}, {t} {d}",
    "{s} {d} with the {w} at the {p} {t}",
    "this {o} from the {p} is {s}, {t}",
    "{s}! the {w} {v} my {o} {d} {t}",
    "just {v} the {o} by the {p}. {s}, {t}",
    "how {s} is this {o}? {t} {d}",
    "{w} and {w2} at the {p} {d} {s} {t}",
    "{v} one {o} and one {o2} {d}: {s} {t}",
    "not every {o} in the {p} is {s} but {t}",
    "{d} {s} {p} {t} {o}",
    "so {s} that the {w} {v} it {d} {t}",
    "still {s} about the {o} at the {p} {t}",
)
