"""The tables of a label database."""

from sqlalchemy import (
    JSON,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)

VERSION = "3"
OPEN, LABELLED, CLOSED = "open", "labelled", "closed"
"""States of a lease; a closed lease was released or undone."""

metadata = MetaData()

settings = Table(
    "settings",
    metadata,
    Column("name", String(40), primary_key=True),
    Column("value", String(200), nullable=False),
)

annotators = Table(
    "annotators",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(40), nullable=False),
    Column("folded_name", String(160), nullable=False, unique=True),  # case folding can lengthen a name
)

# Texts are stored as JSON, whose escapes preserve control characters in every database.
items = Table(
    "items",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("content_hash", String(64), nullable=False, unique=True),
    Column("mode", String(16), nullable=False),
    Column("prompt", JSON, nullable=False),
    Column("completions", JSON, nullable=False),
    Column("template", JSON, nullable=False),  # columns for the chat template, as in `Item.template`
    Column("num_labels", Integer, nullable=False, default=0),  # skips not counted
    Index("items_by_need", "mode", "num_labels", "id"),
)

# A lease assigns an item to one annotator for a limited time and records the order of the completions.
leases = Table(
    "leases",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("item_id", ForeignKey("items.id"), nullable=False),
    Column("annotator_id", ForeignKey("annotators.id"), nullable=False),
    Column("shown_order", JSON, nullable=False),
    Column("state", String(10), nullable=False),
    Column("created_at", Double, nullable=False),  # seconds since 1970
    Column("expires_at", Double, nullable=False),
    Column("seconds_before", Double, nullable=False, default=0.0),  # time spent on an undone label
    Index("leases_by_item", "item_id", "state"),
    Index("leases_by_annotator", "annotator_id", "state"),
)

labels = Table(
    "labels",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("lease_id", ForeignKey("leases.id"), unique=True),  # null for an imported label
    Column("item_id", ForeignKey("items.id"), nullable=False),
    Column("annotator_id", ForeignKey("annotators.id"), nullable=False, index=True),
    Column("verdict", String(8), nullable=False),
    Column("shown_order", JSON),  # null if unknown
    # From showing the item to its label, including the time of an undone one; null if unknown.
    Column("seconds", Double),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("item_id", "annotator_id"),
)
