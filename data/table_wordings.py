"""The wordings of `ask_as_people`: what people call a column, and how they ask for a cell, a row, an order, a number.

In braces: {noun}, {things}: one or several of what is asked for; {key}, {at}: the row, by name or by when ("in 1994");
{one}, {many}, {which}: an entry of the column that names rows, several, and how a question for one begins.
"""


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


# What short heads of columns stand for.
NOUNS = {
    "gold": ("gold medals", "golds"),
    "silver": ("silver medals", "silvers"),
    "bronze": ("bronze medals", "bronzes"),
    "total": ("total", "total medals", "total points"),
    "total medals": ("medals",),
    "pts": ("points",),
    "pts.": ("points",),
    "pos": ("position",),
    "pos.": ("position",),
    "nat": ("nationality",),
    "no": ("number",),
    "no.": ("number",),
    "#": ("number",),
    "att.": ("attendance",),
    "attendance": ("spectators", "people attending"),
    "pop.": ("population",),
    "w": ("wins",),
    "won": ("wins",),
    "l": ("losses",),
    "lost": ("losses",),
    "apps": ("appearances",),
}
# Heads of columns of people, of places, of orders.
PERSONS = frozenset(
    """actor actress architect artist athlete author candidate champion chairman coach commander competitor composer
    cyclist dancer director driver fighter golfer governor guest host incumbent judge king leader lyricist manager mayor
    member minister musician name narrator opponent owner partner pitcher player president producer queen representative
    rider runner runner-up runners-up scorer senator singer skater skipper songwriter starring swimmer winner winners
    wrestler writer""".split()
)
PLACES = frozenset(
    """area arena borough circuit city country county district ground hometown location municipality nation port
    province region site stadium state station town track venue village""".split()
)
RANKS = frozenset(("rank", "no", "#", "pos", "position", "place", "number", "season", "week", "round"))
DEEDS = {
    "director": "directed",
    "winner": "won",
    "author": "wrote",
    "writer": "wrote",
    "artist": "sang",
    "host": "hosted",
    "producer": "produced",
    "owner": "owns",
    "composer": "composed",
    "coach": "coached",
    "manager": "managed",
    "champion": "won",
    "opponent": "played against",
    "architect": "designed",
    "publisher": "published",
}
MEASURES = {
    "length": "long",
    "duration": "long",
    "time": "long",
    "distance": "far",
    "height": "tall",
    "depth": "deep",
    "age": "old",
}

# A cell of the row that a name stands for; by the kind of the column, the first for all kinds.
VALUE_OF = {
    "": _lines("""
        what is the {noun} of {key}?
        what was the {noun} for {key}?
        what is {key}'s {noun}?
        {key} has what {noun}?
        which {noun} does {key} have?
        what {noun} did {key} have?
        what was {key}'s {noun}?
        what is listed as the {noun} of {key}?"""),
    "count": _lines("""
        how many {things} did {key} have?
        how many {things} did {key} get?
        how many {things} did {key} win?
        how many {things} did {key} receive?
        how many {things} did {key} score?
        how many {things} does {key} have?
        how many {things} were there for {key}?
        how many total {things} did {key} have?
        what is the number of {things} for {key}?
        what is the total number of {things} for {key}?
        {key} had how many {things}?"""),
    "year": _lines("""
        what year was {key}?
        in what year was {key}?
        when was {key}?
        when did {key} happen?
        in which year did {key} start?
        in what year did {key} win?
        what year was {key} released?
        what year was {key} built?
        when was {key} held?
        what year was {key} made?"""),
    "date": _lines("""
        when was {key}?
        on what date was {key}?
        what date was {key}?
        what day was {key}?
        when did {key} play?
        when did {key} take place?
        when was {key} released?
        when was {key} held?"""),
    "person": _lines("""
        who was the {noun} of {key}?
        who is the {noun} for {key}?
        who was {key}'s {noun}?
        who is listed for {key}?"""),
    "place": _lines("""
        where was {key}?
        where is {key}?
        where was {key} held?
        where is {key} located?
        which {noun} is {key} in?
        what {noun} is {key} from?
        in what {noun} is {key}?"""),
    "rank": _lines("""
        what {noun} is {key}?
        in what {noun} did {key} finish?
        what {noun} did {key} come in?"""),
}
# A cell of the row of a year, a date or a rank.
VALUE_AT = {
    "": _lines("""
        what was the {noun} {at}?
        what is the {noun} {at}?
        what was the {noun} listed {at}?
        which {noun} was {at}?
        what {noun} is listed {at}?
        {at}, what was the {noun}?"""),
    "count": _lines("""
        how many {things} were there {at}?
        how many {things} {at}?
        what was the number of {things} {at}?
        what was the total {noun} {at}?"""),
    "year": _lines("""
        what year was {key}?
        what was the year {at}?"""),
    "date": _lines("""
        when was {key}?
        what was the date {at}?"""),
    "person": _lines("""
        who was the {noun} {at}?
        who was {at}?
        who is listed {at}?"""),
    "place": _lines("""
        where was it {at}?
        what was the {noun} for the game {at}?
        where was the event {at}?"""),
}
# The row that has a value.
ROW_WITH = {
    "": _lines("""
        {which} has a {noun} of {key}?
        {which} had the {noun} {key}?
        {which} has {key} as {noun}?
        what is the only {one} with a {noun} of {key}?
        which {one}'s {noun} is {key}?
        name the {one} whose {noun} is {key}.
        {which} is the only one with {key} as its {noun}?"""),
    "count": _lines("""
        {which} had {key} {things}?
        {which} has {key} {things}?
        {which} won {key} {things}?
        what is the only {one} with {key} {things}?
        what is the only {one} to have {key} {things}?"""),
    "year": _lines("""
        {which} was in {key}?
        {which} is listed in {key}?
        what is the only {one} from {key}?"""),
    "date": _lines("""
        {which} was on {key}?
        {which} is dated {key}?"""),
    "place": _lines("""
        {which} is from {key}?
        {which} was in {key}?
        what is the only {one} in {key}?
        {which} is located in {key}?"""),
    "person": _lines("""
        {which} had {key}?
        {which} is listed with {key}?
        {which} was by {key}?"""),
}
NEXT = _lines("""
    {which} is listed {after} {key}?
    {which} came {after} {key}?
    {which} was {after} {key}?
    {which} comes right {after} {key}?
    {which} comes directly {after} {key}?
    {which} is immediately {after} {key}?
    {which} is {below} {key} in the table?
    {which} is listed {below} {key}?
    {which} is listed directly {below} {key}?
    {which} is {next} {key}?
    what is the {next} {one} {after} {key}?""")
END = _lines("""
    what is the {first} {one} listed?
    {which} is listed {first}?
    what was the {first} {one}?
    what is the {first} {one} on the list?
    what is the {top} {one}?
    {which} is at the {top} of the table?
    what {one} is listed {first} on the chart?
    what is the {one} listed at the {top}?""")
OTHER = _lines("""
    other than {key}, {which} has {value} as {noun}?
    what other {one} has the {noun} {value} besides {key}?
    {which} has the same {noun} as {key}?
    {which} had the same {noun} as {key}?
    besides {key}, name another {one} with {value}.""")
HOW_OFTEN = {
    "": _lines("""
        how many times is {value} listed as the {noun}?
        how many {many} have {value} as {noun}?
        how many {many} have a {noun} of {value}?
        what is the number of {many} with the {noun} {value}?
        how many times was the {noun} {value}?
        how many {many} had the {noun} {value}?"""),
    "place": _lines("""
        how many {many} are from {value}?
        how many {many} are in {value}?
        how many {many} were in {value}?
        how many times did {value} host?
        what is the total number of {many} from {value}?"""),
    "person": _lines("""
        how many times is {value} listed?
        how many times did {value} play?
        how many {many} did {value} have?"""),
    "year": _lines("""
        how many {many} were in {value}?
        how many {many} are listed in {value}?
        how many {many} were there in {value}?"""),
}
COMMONEST = _lines("""
    {which} appears the most?
    {which} is listed the most?
    {which} is listed the most times?
    what {noun} appears most often?
    which {noun} is the most common?""")
EXTREME_ROW = {
    "count": _lines("""
        {which} has the {most} {things}?
        {which} had the {most} {things}?
        {which} won the {most} {things}?
        {which} has the {highest} {noun}?
        {which} had the {highest} {noun}?
        what is the {one} with the {highest} {noun}?"""),
    "year": _lines("""
        {which} was the {highest}?
        what is the {highest} {one}?
        {which} has the {highest} {noun}?"""),
}
EXTREME = _lines("""
    what is the {highest} {noun}?
    what was the {highest} {noun}?
    what is the {highest} {noun} listed?
    what is the {highest} number of {things}?""")
MORE = _lines("""
    {which} has more {things}, {a} or {b}?
    who had more {things}, {a} or {b}?
    did {a} or {b} have more {things}?
    {which} has the higher {noun}, {a} or {b}?
    which has a larger {noun}: {a} or {b}?""")
LESS = _lines("""
    {which} has less {things}, {a} or {b}?
    who had fewer {things}, {a} or {b}?
    {which} has the lower {noun}, {a} or {b}?""")
EARLIER = _lines("""
    {which} was first, {a} or {b}?
    which is older, {a} or {b}?
    {which} came first, {a} or {b}?""")
LATER = _lines("""
    {which} was later, {a} or {b}?
    which is newer, {a} or {b}?""")
IS_MORE = _lines("""
    does {a} have more {things} than {b}?
    did {a} have more {things} than {b}?""")
GAP = _lines("""
    how many more {things} did {more} have than {less}?
    how many more {things} does {more} have than {less}?
    how many fewer {things} did {less} have than {more}?
    what is the difference in {noun} between {a} and {b}?""")
SUM = _lines("""
    how many {things} did {a} and {b} have combined?
    what is the total number of {things} for {a} and {b}?""")
HOW_MANY = _lines("""
    how many {many} have {more} {limit} {things}?
    how many {many} had {more} {limit} {things}?
    how many {many} have a {noun} of {more} {limit}?""")
SIZE = _lines("""
    how many {many} are there?
    how many {many} are listed?
    what is the total number of {many}?
    how many total {many} are there?
    how many {many} are listed in the table?
    how many {many} are in this chart?""")
