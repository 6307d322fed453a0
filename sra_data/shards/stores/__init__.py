"""Shards in a store that fsspec reaches (s3://, gs://, hf://, ...): the rest of the room sees a folder.

`places` says which folder of this machine stands for a URL, `remote` is the little that is asked of a store, `mirror`
keeps the folder and the store alike, `blocks` is the bounded cache through which parts are read.
"""
