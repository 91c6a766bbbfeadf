"""Words and sentences from which `catalogue_file.py` makes products. All of it was written for Afina.

A template is a text with slots in braces; WORDS has a line for each slot. Sentences begin with a capital and end with
small letters and a full stop, so that two can be glued as catalogues glue them. Quotes and dashes are ' " and -- here.
"""

from __future__ import annotations

WORDS = """
first: Ada, Alma, Amos, Anton, Basil, Beatriz, Bento, Bruna, Caio, Celia, Clara, Cora, Davi, Delia, Edgar,
    Elisa, Enzo, Esther, Fabio, Flora, Gil, Greta, Hugo, Ida, Igor, Irene, Jonas, Julia, Lars, Lia, Livia,
    Marcus, Mateus, Mira, Nadia, Nina, Olga, Otto, Paula, Pedro, Petra, Quentin, Rafael, Rosa, Ruth, Samuel,
    Selma, Silas, Tania, Theo, Ursula, Vera, Victor, Wanda, Yara, Zeno
last begin: Al, Bar, Bel, Bran, Cal, Cor, Dal, Dor, El, Fal, Gar, Hal, Har, Kel, Lan, Lor, Mar, Mor, Nor, Or,
    Pel, Ros, Sal, Tal, Tor, Val, Ver, Wil
last end: bach, bert, by, cott, dahl, den, der, do, ford, gan, ham, kin, ley, lund, man, mont, nek, ner, rick,
    ros, se, ski, son, stad, ston, va, ves, wood
place begin: Ash, Birch, Black, Bright, Cedar, Clear, Cold, Crow, Deep, East, Elm, Fair, Fern, Green, Grey,
    High, Iron, Long, Low, Mill, North, Oak, Old
place end: bay, bridge, brook, cliff, cross, dale, field, ford, gate, harbour, haven, hill, hollow, lake,
    mere, moor, point, ridge, shore, vale, well
brand begin: Aqua, Astro, Bora, Cali, Cedra, Domo, Ever, Ferro, Gala, Helio, Iris, Juno, Kilo, Lumo, Mono,
    Nova, Orbi, Pina, Quar, Rapi, Sola, Terra
brand end: bel, craft, dex, dora, fix, flex, form, gear, gran, kit, line, lux, mar, max, mo, nel, plex, ra,
    san, tec, tex, ton, via, vox, ware, well, zen
adj: ancient, angry, brave, bright, broken, careful, cheerful, clumsy, cold, crooked, curious, dark, dusty,
    eager, early, empty, faded, faithful, forgotten, gentle, glowing, golden, grumpy, hidden, hollow, hungry,
    idle, jealous, lonely, lost, lucky, magnificent, modest, mysterious, narrow, noisy, patient, playful,
    quiet, reckless, restless, rusty, secret, shy, silent, silver, sleepy, stubborn, sudden, tender, thirsty,
    tiny, twisted, unlikely, vanished, wandering, weary, wild, wise
thing: accordion, almanac, anchor, apple, archive, balloon, barn, beehive, bicycle, boat, bridge, cabin,
    camera, candle, caravan, carnival, castle, chimney, clock, compass, cottage, crow, diary, donkey, dragon,
    elephant, engine, falcon, ferry, fiddle, forest, fox, garden, ghost, glacier, greenhouse, harbor,
    hedgehog, island, kite, lantern, letter, library, lighthouse, map, market, meadow, mirror, monastery,
    moon, mountain, nightingale, orchard, otter, owl, parrot, piano, pirate, puppet, quilt, rabbit, railway,
    river, rooster, sailor, shadow, snail, sparrow, staircase, storm, submarine, swallow, telescope, tiger,
    tower, train, turtle, umbrella, valley, violin, volcano, wagon, whale, wheel, willow, windmill, winter,
    wolf
job: apprentice, archivist, astronomer, baker, beekeeper, botanist, bookseller, carpenter, cartographer,
    clockmaker, cook, detective, doctor, engineer, farmer, fisherman, gardener, governess, journalist, judge,
    librarian, locksmith, mechanic, midwife, musician, nurse, painter, photographer, pilot, postman, potter,
    shepherd, smuggler, surgeon, tailor, teacher, translator, violinist
topic: astronomy, bookkeeping, bread baking, calculus, chess, choral singing, climate, city planning, coastal
    sailing, composition, cryptography, dog training, drawing, early childhood, economics, electricity,
    ethics, family history, fly fishing, gardening, geology, grammar, herbal medicine, home repair, knitting,
    linguistics, logic, marine biology, meditation, meteorology, mythology, navigation, oil painting,
    photography, physics, pottery, prayer, public speaking, sculpture, statistics, typography, weaving,
    woodworking
feeling: courage, curiosity, despair, envy, forgiveness, friendship, gratitude, grief, guilt, hope, jealousy,
    joy, loyalty, pride, regret, tenderness
material: aluminum, bamboo, beech, brass, canvas, iron, ceramic, chrome, copper, cork, cotton, denim, felt,
    glass, leather, linen, maple, nylon, oak, pine, plastic, rubber, silicone, steel, suede, velvet, walnut,
    wool
color: amber, aqua, beige, black, blue, bronze, burgundy, charcoal, coral, cream, crimson, green, gold, gray,
    indigo, ivory, lavender, lime, mustard, navy, olive, orange, pink, plum, red, sand, scarlet, teal,
    turquoise, violet, white, yellow
tool: bench vise, block plane, caulking gun, chisel set, clamp, cordless drill, crowbar, digital caliper,
    drill bit set, file set, hacksaw, hand saw, heat gun, hex key set, jigsaw, laser level, mallet,
    multimeter, nail set, orbital sander, pipe wrench, pliers, pry bar, putty knife, ratchet set, rotary
    cutter, screwdriver, socket set, soldering iron, spirit level, staple gun, tape measure, tin snips, torque
    wrench, utility knife, wire stripper
kitchen: apron, baking sheet, bread knife, cake stand, can opener, casserole, cheese grater, colander, cookie
    cutter, corkscrew, cutting board, egg timer, espresso pot, frying pan, garlic press, kettle, ladle, lemon
    squeezer, measuring cup, mixing bowl, mortar, muffin pan, oven mitt, pasta maker, pepper mill, pie dish,
    pitcher, rolling pin, salad spinner, saucepan, spice rack, steamer, teapot, toaster, tray, whisk, wine
    rack
toy: alphabet blocks, balance bike, board game, building set, card game, doll house, finger puppets, floor
    puzzle, jigsaw puzzle, kaleidoscope, marble run, memory game, modeling clay, music box, night light, paint
    set, plush bear, pull-along duck, push cart, racing car, rocking horse, sand mold, shape sorter, skipping
    rope, spinning top, stacking rings, tea set, train set, tricycle, water pistol, wooden farm, xylophone,
    yo-yo
wear: anorak, apron dress, backpack, ballet tutu, baseball cap, belt, blouse, boots, cardigan, costume, duffel
    bag, fleece, gloves, hoodie, jacket, leggings, mittens, overalls, pajamas, parka, polo shirt, raincoat,
    sandals, scarf, shoulder bag, slippers, sneakers, socks, sweater, swim trunks, T-shirt, tie, tights,
    tunic, umbrella, vest, wallet, watch strap
genre: bluegrass, bossa nova, chamber music, children's songs, choral music, country, dance, dub, fado, film
    music, flamenco, folk, forró, funk, gospel, hymns, jazz, lullabies, opera, piano sonatas, polka, ragtime,
    reggae, rock, samba, soul, string quartets, swing, tango, techno
format: Audio CD, VHS, DVD, Vinyl, Paperback, Hardcover, Spiral-bound, Board book, Library binding, Cassette,
    Box Set, Large Print
praise: a book to keep, a delight from the first page, a rare gift, a small masterpiece, beautifully told,
    funny and wise, hard to put down, impossible to forget, quietly devastating, sharp and tender, the best of
    its kind, warm and exact
paper: The Harbor Review, The Evening Ledger, Reading Weekly, The Northern Post, Book & Lantern, Library
    Notes, The Sunday Courier, School Shelf, The Valley Times, Pages Quarterly
age: toddlers, children of three and up, children between five and nine, young readers, teenagers, students,
    beginners, families, collectors, grandparents
room: attic, bathroom, bedroom, classroom, garage, garden shed, hallway, kitchen, laundry, library, living
    room, nursery, office, porch, workshop
palavra: a abelha, o açude, o amanhecer, a aventura, o barco, o caminho, a cidade, o coração, a coruja, a
    criança, a estação, a estrela, a floresta, a formiga, a ilha, a janela, o jardim, a lembrança, a lua, o
    mar, a menina, o mistério, a montanha, a noite, a onça, o palhaço, o pássaro, o pescador, o pintor, a
    praça, o relógio, o rio, o segredo, o sertão, a sombra, a tempestade, o trem, o vento, a viagem
tema: arte brasileira, astronomia, botânica, contabilidade, culinária mineira, direito civil, economia,
    educação infantil, estatística, filosofia, física, fotografia, geografia, história do Brasil, jardinagem,
    língua portuguesa, marcenaria, matemática, música popular, psicologia, redação, saúde da família
objeto: abajur, balde, banco, caderno, cesto, copo, espelho, fogareiro, jarro, porta-retrato, prato, tapete,
    travesseiro, vaso
"""


def word_lists() -> dict[str, list[str]]:
    """slot -> words."""
    lines = " ".join(line.strip() if line.startswith(" ") else f"\n{line}" for line in WORDS.splitlines()).splitlines()
    named = [line.split(": ", 1) for line in lines if ": " in line]
    return {name.strip(): [word.strip() for word in words.split(",")] for name, words in named}


# Kind -> (share, title templates, sentence templates).
KINDS: dict[str, tuple[float, list[str], list[str]]] = {
    "book": (
        0.5,
        [
            "The {adj} {color} {thing}",
            "The {adj} {job}'s {adj} {thing}",
            "{name} and the {adj} {thing}",
            "A {thing} in {place}",
            "{place}: A Novel",
            "The {thing} of {place}",
            "The {adj} {job} of {place} ({brand} Mysteries, Book {small})",
            "Teach Yourself {topic} in {number} Days ({brand})",
            "{topic} for the {adj} {job}",
            "A Short History of {topic} in {place}",
            "My First Book of the {color} {thing} & the {adj} {thing}",
            "The {brand} Guide to {topic}, {small}th Edition",
            "{name}: A Life in {topic}",
            "Letters from {place}, {year}-{year}",
            "{thing} and {adj} {thing}: Poems ({brand} Poetry Series)",
            "{name}'s Introduction to {topic}: Exercises and Solutions, Volume {small}",
        ],
        [
            "In {year} {name}, {adj} {job} and {adj} {job}, arrives in {place} with nothing but a {adj} "
            "{color} {thing}.",
            "When {name} inherits a {color} {material} {thing} in {place}, {name} next door begins to ask "
            "about the {adj} {thing}.",
            "It's a story of {feeling}, {feeling} and {feeling}, told by {name}, {adj} {job} of {place}, "
            "who can't forget {name}.",
            "Nobody in {place} believes {name}, until {number} {color} {thing} keys and the {adj} "
            "{material} {thing} disappear in one {adj} night.",
            "{name} ({place}, {year}) worked as {adj} {job} with {name} and {name} before writing about {topic}.",
            "{name} lives in {place} with {name}, a {adj} {color} dog, {small} {adj} cats and a {material} "
            "{thing} that doesn't work.",
            "This book explains {topic} to {age} in {number} {adj} {thing} exercises, after {name}, {name} and {name}.",
            "Each chapter begins with a {adj} {material} {thing} ({place}, {year}) and ends with a question "
            "about {feeling}.",
            '"{praise}" --{paper}, {year}, on {name}, {name} and the story of a {adj} {color} {thing}.',
            "The {small} chapters on {topic} were revised when {name} found {number} {color} letters of "
            "{name} in {place}.",
            "With maps of {place}, {place} and {place}, {number} {color} drawings by {name} and a glossary of {topic}.",
            "Readers who loved The {adj} {color} {thing} won't want to miss what happens to {name} and "
            "{name} in {place}, {year}.",
            "What does {adj} {job} {name} owe to {name}? {name} spent {small} {adj} {adj} years in {place} "
            "to find out.",
            "Beneath the {color} {material} {thing} there's a {adj} secret: {name} of {place}, {adj} {job}, "
            "has been dead since {year}.",
            "Ages {small} and up; {number} {color} {material} pages with illustrations of a {adj} {color} "
            "{thing} and a {adj} {thing}.",
        ],
    ),
    "music": (
        0.12,
        [
            "{name}: {genre}",
            "{name}: Best of {genre} {year}",
            "{name} Live in {place} [{format}]",
            "The {adj} {thing} ({genre})",
            "{color} {thing} & {adj} {thing} [{format}]",
            "{genre} from {place}, Vol. {small}",
        ],
        [
            "Recorded in {place}, {year}, with {name}, {name}, {name} and {name} on bass.",
            "{small} {adj} {genre} songs by {name} and {name} that move from {feeling} to {feeling} in less "
            "than an hour.",
            "The band's {adj} {color} {thing} album was lost in {place}, {year}, and is heard here for the first time.",
            "{name} sings of {adj} {color} {thing} days, {name} and the {adj} {job} {name} who sold them both.",
            '"{praise}," wrote {paper} after the concert in {place}.',
            "Remastered from the tapes of {year}; the booklet tells how {name} met the {job}.",
        ],
    ),
    "film": (
        0.08,
        [
            "The {adj} {color} {thing} [{format}]",
            "{name}'s {thing} ({year}) [{format}]",
            "Return to {place}, {year} [{format}]",
            "Learn {topic} with {name} [{format}]",
        ],
        [
            "{adj} {job} {name} (played by {name}) must cross {place} {small} {adj} times before the "
            "{color} {thing} closes.",
            "Shot on location in {place}, {place} and {place}, it won {small} {adj} {thing} prizes in "
            "{year} for its photography.",
            "Also includes an interview with {name} ({place}, {year}) and a short film about a {adj} {color} {thing}.",
            "It's {number} minutes long, in color, with subtitles for those who don't follow the {job}.",
            "Nothing prepares {adj} {job} {name} for what {name} keeps behind the {color} {material} {thing}.",
        ],
    ),
    "toy": (
        0.1,
        [
            "{brand} {toy} No. {number}",
            "{brand} {color} {toy}, {small} Pieces",
            "{toy} with {adj} {thing} by {brand}",
            "{brand} {thing} {toy} - {color}",
        ],
        [
            "This {toy} is made of {material} and painted in {color} and {color} by hand.",
            "For {age}: {number} {color} {material} pieces that fit in a box shaped like a {adj} {color} {thing}.",
            "Children build {small} {adj} {thing} towers and a {color} {material} {thing}, and don't notice "
            "that they're learning {topic}.",
            "Needs {small} {adj} {color} batteries and a {adj} afternoon; the {material} {thing} lights up in {color}.",
            "Tested in {place}, {year}, by {name} and {number} {adj} {adj} children, who broke only the {thing}.",
            "The {brand} {toy} won't tip over, and its {material} wheels don't scratch the floor of the {room}.",
        ],
    ),
    "tool": (
        0.07,
        [
            "{brand} {number}-{small} {tool}",
            "{brand} {tool}, {material}, No. {number}",
            "{tool} with {material} Handle, {number} x {number} mm",
            "{brand} Professional {tool} ({color})",
        ],
        [
            "The {tool} has a {material} handle and weighs {number} grams, so it doesn't tire the hand.",
            "Made by {brand} in {place} {year} after {name}, with a guarantee of {small} years on the {adj} "
            "{color} {thing} parts.",
            "Cuts {material}, {material} and {material} up to {small} mm without leaving a {adj} edge.",
            "Fits every {brand} case; the {color} grip won't slip in wet weather.",
            "It's what a {job} keeps in the {room}, and what a {adj} beginner should buy first.",
        ],
    ),
    "kitchen": (
        0.08,
        [
            "{brand} {kitchen}, {color}",
            "{brand} {color} {material} {kitchen} - {small} Quart",
            "{name}'s {kitchen} in {color} {material}",
            "{brand} {kitchen} with {thing} Pattern, Set of {small}",
        ],
        [
            "A {kitchen} of {material} that goes from the oven to the table and into the dishwasher.",
            "Holds {number} {small} ml cups, item {number} {number}; the {adj} {color} {material} rim doesn't chip.",
            "Designed by {name} ({place}, {year}), {adj} {job}, who couldn't find a good {kitchen}.",
            "It's as useful in the {room} as it is handsome, and the {material} stays cool.",
            "Comes with {small} {adj} recipes from {name}, {name} and {place}, one of them for {adj} {color} soup.",
        ],
    ),
    "wear": (
        0.05,
        [
            "{brand} {adj} {wear}, {color}",
            "{brand} {adj} {thing} {wear} - {color}",
            "Women's {color} {material} {wear} by {brand}",
            "Boys' {color} {wear} with {adj} {thing}, Size {small}",
        ],
        [
            "This {wear} is {number} percent {material}, lined in {color}, and doesn't shrink.",
            "Cut in {place}, {year}, and sewn by {name}, with {small} {color} {adj} pockets for a {thing}.",
            "Machine wash cold; the {color} stays {color} and the {adj} {thing} won't peel.",
            "Made for a {adj} {color} day at the {thing} or an evening with {name}, {adj} {job}.",
        ],
    ),
}

PORTUGUESE: tuple[float, list[str], list[str]] = (
    0.06,
    [
        "{palavra} e {palavra} de {place}",
        "{palavra} de {place}",
        "Manual {brand} de {tema}, {small}ª edição",
        "{objeto} {brand} {color} - {number} ml",
        "Introdução à disciplina: {tema}, segundo {name}",
        "Canções sobre {palavra} e {palavra} [{format}]",
    ],
    [
        "Em {year} {name} chega a {place} com {name} e descobre que {palavra} não é o que parecia.",
        "Uma história de {name}, {name} e {name} sobre {palavra} e {palavra}, para quem nunca esqueceu a infância.",
        "Este livro apresenta {tema} em {small} capítulos, {number} exercícios e {name}, {name} e {name}.",
        "Pesa {number} gramas, é fácil de limpar e não risca.",
        "{name} ({place}, {year}) estudou {tema} com {name} e hoje escreve sobre {palavra} e {palavra}.",
        "Ilustrado por {name}, é uma leitura para toda a família.",
        "Ninguém em {place} {year} acredita no que aconteceu com {name}, {name} e {palavra} numa noite de chuva.",
        "Depois de {small} anos longe de {place}, {name} {year} volta para procurar {palavra} e {name}.",
        "Feito à mão em {place} {year} por {name}, acompanha um manual sobre {tema}.",
    ],
)
# For products of every kind but books: what catalogues say of anything.
GENERAL = [
    "Ships from {place} {number} in a plain {color} {material} box of {number} grams.",
    "Designed by {name}, {name} and {name}, who also drew the {adj} {color} {thing} on the label.",
    "{name}, {adj} {job} in {place}, tried it for {small} {adj} weeks and kept it.",
    "Winner of the {place} {year} {color} {thing} prize, and still made the same way by {name}.",
    "Also available in {color}, {color} and {color}.",
    "Not recommended for {age} without the help of {name}, {adj} {job}.",
    "Look for the {adj} {color} {thing} on the box: that's how {brand} marks lot {number} {number} {number}.",
    "Made of {material}, with a {color} finish that doesn't fade.",
    "Measures {small} x {small} x {number} mm, weighs {number} grams and carries the number "
    "{number} {number} {number}.",
    "It's {brand} at its best: {adj}, plain and easy to repair.",
]
SUBTITLES = [
    ": A Story of {feeling} and {feeling}",
    ": The {adj} Years of {place}",
    " and Other Tales of {feeling}",
    ", with an Introduction by {name}",
    ": How a {job} Saved {place}",
]
SUFFIXES = [
    " with {material} Trim",
    " for {room} and {room}",
    ", Model {number}",
    " by {brand}, {small} Count",
    " ({color} and {color})",
]
BLURBS = [
    "{name} is the author of {small} books about {topic}, among them The {adj} {thing}, and teaches in {place}. "
    "Before that came {small} years as a {job}.",
    "{name} grew up in {place}, where a {job} taught the whole village {topic}. The author's first novel, "
    "A {thing} of {place}, won the prize of {paper} in {year}.",
    "{name} has drawn pictures for more than {number} books. When {name} isn't drawing, there's a {thing} to repair.",
    "{brand} has made things of {material} in {place} since {year}. It's a family of {job} after {job}.",
]
SHORT = [
    "By {name}, illustrated by {name}",
    "A {adj} {thing} from {place}",
    "{color} {material}, {number} mm",
    "Recorded in {place}, {year}",
    "{number} {color} {adj} pieces, {material}",
    "{name} on {topic}",
]
REMARKS = [
    "--This text refers to thePaperbackedition.",
    "--This text refers to theHardcoveredition.",
    "--This text refers to theMass Market Paperbackedition.",
    "--This text refers to theLibrary Bindingedition.",
    "--This text refers to theKindle Editionedition.",
    "--This text refers to an out of print or unavailable edition of this title.",
    "This text refers to thePaperbackedition.",
    "This text refers to an alternatePaperbackedition.",
]
