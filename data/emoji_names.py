"""Which character an icon of an emoji set shows, by its name: "grinning-face", "americasglobe" -> U+1F600, U+1F30E.

Names are compared without hyphens, as some sets write none. First comes a table for the names that a set alone has,
then the names of those sets that list code points themselves (CLDR's short names, mostly), then Unicode's own. A name
that could mean two characters, or that means a sequence of several, is left out.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping


def _table(text: str) -> dict[str, str]:
    words = text.split()
    return dict(zip(words[::2], words[1::2], strict=True))


# Checked by eye against the drawings.
_OF_ANY_SET = _table("""
    moai 🗿 keyboard ⌨ link 🔗 scroll 📜 laptopcomputer 💻 grinningcatface 😺 kissingcatface 😽
    smilingcatfacewithhearteyes 😻 manwithchinesecap 👲 manwithskullcap 👲 schoolbackpack 🎒 hourglasswithflowingsand ⏳
    facewithstuckouttongueandclosedeyes 😝 smilingfacewithopenmouthandclosedeyes 😆 whitemediumstar ⭐ waterpistol 🔫
    axe 🪓 brain 🧠 donkey 🫏 elevator 🛗 microbe 🦠 pretzel 🥨 bouquetofflowers 💐 redwineglass 🍷 gamedice 🎲
    birthdaycake 🎂 robotface 🤖 crazyface 🤪 ewe 🐑 heavyheartexclamation ❣ blondhairedperson 👱
    """)
_OF_ONE_SET = {
    "fxemoji": _table("""
    2hearts 💕 acorn 🌰 anguish 😧 americasglobe 🌎 europeafricaglobe 🌍 asiaaustraliaglobe 🌏 banknotedollar 💵
    banknoteeuro 💶 banknotepound 💷 banknoteyen 💴 bellcancellation 🔕 bookmarktab 📑 bride 👰 bunny 🐰 bunnyside 🐇
    catside 🐈 dogside 🐕 mouseside 🐁 pigside 🐖 tigerside 🐅 leopardside 🐆 dragonside 🐉 dragonhead 🐲 dog 🐶 cat 🐱
    mouse 🐭 tiger 🐯 pig 🐷 cellphone 📱 chartdownwardstrend 📉 chartupwardstrend 📈 chilipepper 🌶 crying 😢
    loudlycrying 😭 dissapointedrelief 😥 evergreen 🌲 fallingleaf 🍂 fishcakeswirl 🍥 flexbicep 💪 folder 📁
    openfolder 📂 frontfacingchick 🐥 frown 😦 girlgirl 👭 guyguy 👬 girlguy 👫 gma 👵 gpa 👴 grinsweat 😅 grintears 😂
    grinsquint 😆 guapimao 👲 halo 😇 devilhorns 😈 hampster 🐹 headmassage 💆 heartarrow 💘 heartblue 💙 heartgreen 💚
    heartpurple 💜 heartyellow 💛 heartribbon 💝 heels 👠 highspeedtrainbulletnose 🚅 japaneseangrymask 👹
    leaffluttering 🍃 lockandkey 🔐 mansshirt 👕 medicalmask 😷 mensrunner 👟 mensshoe 👞 monkeyhear 🙉 monkeysee 🙈
    monkeyspeak 🙊 neutral 😐 notebookdecorativecover 📔 perservere 😣 pigsnout 🐽 poo 💩 pouting 😡 present 🎁
    racecar 🏎 raincloud 🌧 snowcloud 🌨 stormcloud ⛈ sunraincloud 🌦 screamfear 😱 spurtingwhale 🐳 studiomic 🎙
    sweatsplash 💦 swimming 🏊 tennisball 🎾 thoughtbaloon 💭 tie 👔 tired 😫 tongueout 😛 tongueoutwink 😜
    toykotower 🗼 turban 👳 videocasette 📼 winking 😉 womansshirt 👚 confetti 🎊 bullhorn 📢 construct 👷 bowing 🙇
    scroll 📜 snowmountains 🏔 forkknife 🍴 anger 💢 sandals 👡 playingcardblackjoker 🃏 meridianglobe 🌐 outbox 📤
    nogesture 🙅 okgesture 🙆 handup 🙋 kisseyes 😙 kissclosedeyes 😚 smileeyes 😊 cactus 🌵 sleeping 😴 kiss 💋 hand ✋
    running 🏃 beachumbrella 🏖 lips 👄 wave 👋 clap 👏 boot 👢 cop 👮 gem 💎 couplekiss 💏 ten 🔟 grin 😁 relieved 😌
    hearteyes 😍 smirk 😏 expressionless 😑 unamused 😒 sweat 😓 pensive 😔 confused 😕 confounded 😖 kissing 😗
    disappointed 😞 worried 😟 angry 😠 triumph 😤 fearful 😨 weary 😩 sleepy 😪 grimacing 😬 openmouth 😮 hushed 😯
    coldsweat 😰 astonished 😲 flushed 😳 nomouth 😶 pray 🙏 walking 🚶
    """),
}


def plain(name: str) -> str:
    """The letters and digits of a name, small and without accents or hyphens."""
    return re.sub("[^a-z0-9]", "", unicodedata.normalize("NFKD", name.lower()))


def character(code: str) -> str | None:
    """The single character of "1f600" or "2764-fe0f"; None for a sequence. ValueError where it is no code point."""
    codes = [part for part in code.lower().split("-") if part != "fe0f"]
    return chr(int(codes[0], 16)) if len(codes) == 1 else None


class Names:
    """`find(name, style)`: the character that an icon of that name shows in the set `style`, None if that is not sure.

    known: character -> name of every character that may be found. listed: code point(s) -> name, as sets list them.
    """

    def __init__(self, known: Mapping[str, str], listed: Iterable[Mapping[str, str]]):
        self._known = known
        self._tables: list[dict[str, set[str]]] = [{}, {}]
        self._sequences = set()
        for names in listed:
            for code, name in names.items():
                if char := character(code):
                    self._tables[0].setdefault(plain(name), set()).add(char)
                else:
                    self._sequences.add(plain(name))
        for char, name in known.items():
            for each in (unicodedata.name(char), name):
                self._tables[1].setdefault(plain(each), set()).add(char)

    def find(self, name: str, style: str) -> str | None:
        name = plain(name)
        char = _OF_ONE_SET.get(style, _OF_ANY_SET).get(name)
        if char is None and name not in self._sequences:
            meant = next((table[name] for table in self._tables if name in table), set())
            char = next(iter(meant)) if len(meant) == 1 else None
        return char if char in self._known else None
