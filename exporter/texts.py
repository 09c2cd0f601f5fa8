"""The real texts that variants are verified on."""

from __future__ import annotations

# Texts of different lengths and scripts for models that are exported without an evaluation file.
REAL_TEXTS = (
    "The parcel arrived two days late and the box was open.",
    "How do I change the address of my order?",
    "Thanks!",
    "我想知道我的订单什么时候能到。",
    "La réunion de jeudi est reportée à la semaine prochaine à cause de la grève des trains régionaux.",
    "In 2019 the plant produced 4,100 tonnes of cheese, 12.5 % more than the year before 🧀.",
    "She did not say that he stole the money.",
    (
        "A long sentence, written so that at least one of the texts in this batch is considerably longer than the "
        "others, goes on for a while about the weather, the price of coffee, and whether the last train has left."
    ),
)
# Second texts for models that read two; each goes with the text at its place above.
SECOND_TEXTS = (
    "When did it arrive?",
    "You can change it under account, addresses.",
    "You are welcome.",
    "订单明天到。",
    "Les trains ne roulent pas jeudi.",
    "The plant makes cheese.",
    "Somebody stole the money.",
    "The text is about the weather.",
)
