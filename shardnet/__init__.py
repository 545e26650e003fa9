"""shardnet: run one large language model on several ordinary machines."""

__version__ = "0.1.0"
