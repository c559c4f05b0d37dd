"""Teaching on the box against training in torch, its time, and false rejects that are added."""
