package io.tierstore.spark;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.ArrayList;
import java.util.Iterator;
import java.util.List;
import org.apache.arrow.flatbuf.Message;
import org.apache.arrow.flatbuf.RecordBatch;
import org.apache.arrow.memory.ArrowBuf;
import org.apache.arrow.memory.BufferAllocator;
import org.apache.arrow.vector.FieldVector;
import org.apache.arrow.vector.TypeLayout;
import org.apache.arrow.vector.ipc.message.ArrowBuffer;
import org.apache.arrow.vector.ipc.message.ArrowFieldNode;
import org.apache.arrow.vector.ipc.message.ArrowRecordBatch;
import org.apache.arrow.vector.ipc.message.MessageSerializer;
import org.apache.arrow.vector.types.pojo.Field;
import org.apache.arrow.vector.types.pojo.Schema;

/** A batch as one message of Arrow's IPC format, its body at a multiple of 64 bytes. */
final class BatchFrame {
  private static final int PREFIX = 8;
  private static final int ALIGN = 64;

  private final ArrowRecordBatch record;
  private final ByteBuffer metadata;
  private final int start;

  /** record: stays the caller's. */
  BatchFrame(ArrowRecordBatch record) {
    this.record = record;
    metadata = MessageSerializer.serializeMetadata(record);
    start = (PREFIX + metadata.remaining() + ALIGN - 1) / ALIGN * ALIGN;
  }

  long size() {
    return start + record.computeBodyLength();
  }

  /** Write it; size() bytes. */
  void writeTo(ByteBuffer target) {
    ByteBuffer at = target.duplicate().order(ByteOrder.LITTLE_ENDIAN);
    int origin = at.position();
    at.putInt(-1).putInt(start - PREFIX).put(metadata.duplicate());
    List<ArrowBuffer> layout = record.getBuffersLayout();
    long body = record.computeBodyLength();
    long end = 0;
    zero(at, origin + start);
    for (int number = 0; number < layout.size(); number++) {
      ArrowBuf buffer = record.getBuffers().get(number);
      zero(at, Math.toIntExact(origin + start + layout.get(number).getOffset()));
      end = layout.get(number).getOffset() + buffer.readableBytes();
      at.put(buffer.nioBuffer(buffer.readerIndex(), Math.toIntExact(buffer.readableBytes())));
    }
    if (end < body) {
      zero(at, Math.toIntExact(origin + start + body));
    }
  }

  /** Up to a position: memory of the store has held other data before. */
  private static void zero(ByteBuffer at, int until) {
    while (at.position() < until) {
      at.put((byte) 0);
    }
  }

  /**
   * Vectors of some columns over the memory of a frame, which is let go when the last of them is closed.
   *
   * <p>frame: given away, also where this fails.
   */
  static List<FieldVector> vectors(ArrowBuf frame, Schema schema, int[] columns, BufferAllocator allocator)
      throws IOException {
    ArrowRecordBatch record;
    try {
      int length = frame.getInt(4);
      Message message = Message.getRootAsMessage(frame.nioBuffer(PREFIX, length));
      RecordBatch header = (RecordBatch) message.header(new RecordBatch());
      ArrowBuf body = frame.slice((long) PREFIX + length, message.bodyLength());
      record = MessageSerializer.deserializeRecordBatch(header, body); // takes over our reference
    } catch (IOException | RuntimeException e) {
      frame.close();
      throw e;
    }
    FieldVector[] found = new FieldVector[schema.getFields().size()];
    try {
      for (int column : columns) {
        if (found[column] == null) {
          found[column] = schema.getFields().get(column).createVector(allocator);
        }
      }
      Iterator<ArrowFieldNode> nodes = record.getNodes().iterator();
      Iterator<ArrowBuf> buffers = record.getBuffers().iterator();
      for (int number = 0; number < found.length; number++) {
        load(found[number], schema.getFields().get(number), nodes, buffers);
      }
    } catch (RuntimeException e) {
      for (FieldVector vector : found) {
        if (vector != null) {
          vector.close();
        }
      }
      throw e;
    } finally {
      record.close();
    }
    List<FieldVector> chosen = new ArrayList<>();
    for (int column : columns) {
      chosen.add(found[column]);
    }
    return chosen;
  }

  /** As Arrow's VectorLoader, which loads all columns. vector: null to skip the field. */
  private static void load(FieldVector vector, Field field, Iterator<ArrowFieldNode> nodes, Iterator<ArrowBuf> buffers) {
    ArrowFieldNode node = nodes.next();
    List<ArrowBuf> own = new ArrayList<>();
    for (int left = TypeLayout.getTypeBufferCount(field.getType()); left > 0; left--) {
      own.add(buffers.next());
    }
    if (vector != null) {
      vector.loadFieldBuffers(node, own);
    }
    for (int number = 0; number < field.getChildren().size(); number++) {
      FieldVector child = vector == null ? null : vector.getChildrenFromFields().get(number);
      load(child, field.getChildren().get(number), nodes, buffers);
    }
  }
}
